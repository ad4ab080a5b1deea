"""The sparse weight change: a few entries of a weight, and of its bias, train; the rest stays as it is."""

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from peft_core.errors import PeftError
from peft_core.grafts.graft import Delta, is_plain, match
from peft_core.grafts.weight_changes import changed_bias
from peft_core.kernels.sparse import scattered, sparse_conv, sparse_linear

Entries = Tensor | int
"""Flat indices within the place's own rows, or how many there will be once `prepare` has chosen them."""


class Sparse(Delta):
    """W' = W + scatter(values) at the entries `indices` (k, int32, ascending), values (k) starting at 0: W' = W at step 0.

    What trains, what is stored and what the optimiser sees are the values alone, as differences to the stock weight. Entries
    of the bias may be chosen likewise (`bias_indices`, `bias_values`). Where only their number is known when the change is
    made, `choose` sets them later: the parameters keep their identity and take their new size.

    Args:
        shape: (out, in) of the place's rows of the weight; a convolution counts in · kh · kw.
        entries: which of them, or how many.
        of_bias: the same of the place's rows of the bias; no entry where None.
    """

    additive = True
    commutes = True
    rebuilds_input = True

    bias_indices: Tensor | None
    indices: Tensor

    def __init__(
        self,
        weight: Tensor,
        rows: tuple[int, int] | None,
        shape: tuple[int, int],
        entries: Entries,
        of_bias: Entries | None = None,
    ):
        super().__init__(rows)
        dtype = torch.promote_types(weight.dtype, torch.float32) if is_plain(weight) else torch.float32
        options: dict[str, Any] = dict(device=weight.device, dtype=dtype)
        self.shape = shape
        self.chosen = not any(isinstance(each, int) and each for each in (entries, of_bias))
        self.register_buffer("indices", _indices(entries, options["device"]))
        self.values = nn.Parameter(torch.zeros(len(self.indices), **options))
        if of_bias is None:
            self.register_buffer("bias_indices", None)
            self.register_parameter("bias_values", None)
        else:
            self.register_buffer("bias_indices", _indices(of_bias, options["device"]))
            self.bias_values = nn.Parameter(torch.zeros(len(self.bias_indices), **options))  # type: ignore[arg-type]

    @torch.no_grad()
    def choose(
        self,
        indices: Tensor | None = None,
        of_bias: Tensor | None = None,
        values: Tensor | None = None,
        bias_values: Tensor | None = None,
    ) -> None:
        """These entries train from now on, from the given values or from 0; where None those that did."""
        if indices is not None:
            self._take("", indices, values)
        if of_bias is not None:
            self._take("bias_", of_bias, bias_values)
        self.chosen = True

    def _take(self, prefix: str, indices: Tensor, values: Tensor | None) -> None:
        parameter: nn.Parameter = getattr(self, f"{prefix}values")
        order = indices.to(parameter.device, torch.int32).sort()
        if self.chosen:  # what an optimiser remembers of an entry goes with it (`lifecycle.follow`)
            parameter.came_from = _found(getattr(self, f"{prefix}indices"), order.values)  # type: ignore[attr-defined]
        new = parameter.new_zeros(len(indices)) if values is None else values.to(parameter)[order.indices].clone()
        setattr(self, f"{prefix}indices", order.values)
        parameter.data, parameter.grad = new, None  # an optimiser made before knows it by its identity

    def entries(self) -> list[Tensor]:
        """Indices of the weight's entries and, where there are such, of the bias's."""
        return [self.indices] if self.bias_indices is None else [self.indices, self.bias_indices]

    # ---- acting ----------------------------------------------------------------------------------------------------

    def _check(self) -> None:
        if not self.chosen:
            raise PeftError(
                "which weights train is not chosen yet: call peft_core.lifecycle.prepare(model, losses), with the losses of "
                "some batches, before training or using the model."
            )

    def forward(self, weight: Tensor) -> Tensor:
        self._check()
        return scattered(weight, self.indices, self.values)

    def bias(self, bias: Tensor | None) -> Tensor | None:
        if bias is None or self.bias_indices is None:
            return bias
        self._check()
        return scattered(bias, self.bias_indices, self.bias_values)

    def on_input(self, x: Tensor, run) -> Tensor:
        """The product with the change alone, beside a weight that nothing can be added to; its bias entries as well."""
        self._check()
        change = self.values.new_zeros(self.shape).flatten().index_add(0, self.indices, self.values * self.factor)
        return self.with_bias(run(match(x, self.values), change.view(self.shape)), run)

    def with_bias(self, y: Tensor, run) -> Tensor:
        """y with the change of the bias, where `run` made it."""
        if self.bias_indices is not None:
            shift = self.values.new_zeros(self.shape[0])
            shift = shift.index_add(0, self.bias_indices, self.bias_values * self.factor)
            y = y + (shift if run is F.linear else shift.view(-1, *[1] * (y.dim() - 2)))
        return y

    @staticmethod
    def kernel(x: Tensor, weight: Tensor, bias: Tensor | None, deltas: list["Sparse"]) -> Tensor:
        for delta in deltas:
            delta._check()
        return sparse_linear(x, weight, changed_bias(bias, deltas, weight), deltas)

    @staticmethod
    def conv_kernel(module: Any, x: Tensor, delta: "Sparse") -> Tensor | None:
        delta._check()
        return sparse_conv(module, x, module.weight, changed_bias(module.bias, [delta], module.weight), delta)

    # ---- files -----------------------------------------------------------------------------------------------------

    def fit(self, tensors: Mapping[str, Tensor]) -> None:
        """Takes the sizes of what is about to be loaded, after a look at its indices."""
        for prefix, size in (("", self.shape[0] * self.shape[1]), ("bias_", self.shape[0])):
            parameter, indices = getattr(self, f"{prefix}values"), tensors.get(f"{prefix}indices")
            values = tensors.get(f"{prefix}values")
            if parameter is None or indices is None or values is None:
                continue
            open_ = bool((indices == -1).all())
            if indices.dtype != torch.int32 or indices.dim() != 1 or indices.shape != values.shape:
                raise PeftError(f"{prefix}indices and {prefix}values of a sparse change are two vectors of one length.")
            if not open_ and not (indices[0] >= 0 and indices[-1] < size and bool((indices.diff() > 0).all())):
                raise PeftError(f"{prefix}indices of a sparse change must ascend and stay below {size:,}.")
            self.chosen = not open_ or not len(indices)
            if len(indices) != len(parameter):
                setattr(self, f"{prefix}indices", torch.full_like(indices, -1, device=parameter.device))
                parameter.data, parameter.grad = parameter.new_zeros(len(indices)), None


class ChosenByValue(Sparse):
    """A sparse change whose entries are chosen by the stock weight, or by what the loss says of it."""

    @classmethod
    def accepts(cls, module: nn.Module, weight: Tensor, rows: tuple[int, int] | None) -> str | None:
        if not is_plain(weight):
            return "its weight is quantised, and which entries matter is read from it"
        return super().accepts(module, weight, rows)


class OfMatrices(ChosenByValue):
    """Of matrices and kernels and their biases; norms stay as they are."""

    needs_matrix = True


def _indices(entries: Entries, device: torch.device) -> Tensor:
    if isinstance(entries, int):
        return torch.full((entries,), -1, dtype=torch.int32, device=device)
    return entries.to(device, torch.int32).sort().values


def _found(known: Tensor, wanted: Tensor) -> Tensor:
    """Where each wanted number stands among the ascending known ones; −1 where it does not."""
    if not len(known):
        return torch.full_like(wanted, -1, dtype=torch.int64)
    at = torch.searchsorted(known, wanted).clamp(max=len(known) - 1)
    return torch.where(known[at] == wanted, at, -1)
