"""A sparse weight change that begins dense, under hard-concrete gates, and ends as the entries that those left open."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from peft_core.grafts.weight_changes import changed_bias, changed_weight
from peft_core.parts.chance import uniform
from peft_core.parts.sparse import ChosenByValue

STRETCH, CLOSEST, SURE = 1.5, 1e-4, 1e4
"""Gates reach from −1.5 to 1.5 before they are cut to [0, 1]; u keeps its distance from 0 and 1; an α that no u changes."""
_STARTS_OPEN = 5.0


class Gated(ChosenByValue):
    """W' = W + z ⊙ w until `settle`, and W + scatter(values) afterwards; the same for the bias where entries of it may be
    chosen. Called after `open`, which makes w and the gates' α."""

    additive = False
    """Its product with an input is formed with W' alone while it is dense."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.settled = False
        with torch.no_grad():  # the entries are those that stay in the end
            self.choose(*(torch.empty(0) for _ in range(1 if self.bias_indices is None else 2)))
        self.register_buffer("key", None)
        for name in ("", "bias_"):
            for what in ("w", "alpha", "group"):
                self.register_parameter(f"{name}{what}", None)

    key: Tensor | None

    def open(self, structured: bool) -> None:
        self.register_buffer("key", torch.zeros((), dtype=torch.int64, device=self.values.device))
        for name, shape in (("", self.shape), ("bias_", self.shape[:1]))[: 1 if self.bias_indices is None else 2]:
            options: dict[str, Any] = dict(device=self.values.device, dtype=self.values.dtype)
            setattr(self, f"{name}w", nn.Parameter(torch.zeros(shape, **options)))
            setattr(self, f"{name}alpha", nn.Parameter(torch.full(shape, _STARTS_OPEN, **options)))
            if structured:
                setattr(self, f"{name}group", nn.Parameter(torch.full((1,), _STARTS_OPEN, **options)))

    def _named(self, *what: str) -> Iterator[nn.Parameter]:
        for name in ("", "bias_"):
            yield from (p for w in what if (p := getattr(self, f"{name}{w}")) is not None)

    def gates(self) -> list[nn.Parameter]:
        return list(self._named("alpha", "group"))

    def differences(self) -> list[nn.Parameter]:
        return list(self._named("w"))

    # ---- acting ----------------------------------------------------------------------------------------------------

    def draw(self, number: int) -> None:
        """The u of this number from now on; the same numbers give the same u."""
        assert self.key is not None
        self.key.fill_(number)

    def _gate(self, alpha: Tensor, which: int) -> Tensor:
        if self.training and torch.is_grad_enabled():
            assert self.key is not None
            u = uniform(self.key + which, alpha.shape, alpha.dtype).clamp(CLOSEST, 1 - CLOSEST)
            alpha = alpha + u.log() - (1 - u).log()
        return (torch.sigmoid(alpha) * 2 * STRETCH - STRETCH).clamp(0, 1)

    def _change(self, name: str) -> Tensor:
        w, alpha, group = (getattr(self, f"{name}{what}") for what in ("w", "alpha", "group"))
        which = 2 if name else 0
        z = self._gate(alpha, which)
        return z * w if group is None else z * self._gate(group, which + 1) * w

    def forward(self, weight: Tensor) -> Tensor:
        if self.settled:
            return super().forward(weight)
        return (weight + self._change("").view(weight.shape)).to(weight.dtype)

    def bias(self, bias: Tensor | None) -> Tensor | None:
        if self.settled or bias is None or self.bias_indices is None:
            return super().bias(bias)
        return (bias + self._change("bias_")).to(bias.dtype)

    @staticmethod
    def kernel(x: Tensor, weight: Tensor, bias: Tensor | None, deltas: list[Any]) -> Tensor:
        if all(delta.settled for delta in deltas):
            return ChosenByValue.kernel(x, weight, bias, deltas)
        return torch.nn.functional.linear(
            x, changed_weight(weight, deltas), changed_bias(bias, deltas, weight)
        )  # fmt: skip

    @staticmethod
    def conv_kernel(module: Any, x: Tensor, delta: Any) -> Tensor | None:
        return ChosenByValue.conv_kernel(module, x, delta) if delta.settled else None

    # ---- from dense to sparse ----------------------------------------------------------------------------------------

    @torch.no_grad()
    def changes(self) -> list[Tensor]:
        """z ⊙ w of the weight and of the bias."""
        alphas = [name for name in ("", "bias_") if getattr(self, f"{name}w") is not None]
        return [self._change(name) for name in alphas]

    @torch.no_grad()
    def fix(self, chosen: Sequence[Tensor]) -> None:
        """These entries' gates are 1 from now on, all others' 0; the change of the chosen ones stays as it is."""
        for name, change, entries in zip(("", "bias_"), self.changes(), chosen, strict=False):
            w, alpha, group = (getattr(self, f"{name}{what}") for what in ("w", "alpha", "group"))
            w.copy_(change)
            alpha.fill_(-SURE).view(-1)[entries] = SURE
            if group is not None:
                group.fill_(SURE)

    @torch.no_grad()
    def settle(self) -> None:
        """Only the entries that are open stay."""
        found = []
        for name in ("", "bias_"):
            if (w := getattr(self, f"{name}w")) is not None:
                entries = (getattr(self, f"{name}alpha").view(-1) > 0).nonzero().flatten()
                found.append((entries, w.view(-1)[entries]))
        self.choose(*(entries for entries, _ in found))
        for parameter, (_, values) in zip((self.values, self.bias_values), found, strict=False):
            parameter.copy_(values)
        self._drop()

    def _drop(self) -> None:
        for name in ("", "bias_"):
            for what in ("w", "alpha", "group"):
                setattr(self, f"{name}{what}", None)
        self.key = None
        self.settled = True

    def fit(self, tensors: Mapping[str, Tensor]) -> None:
        if "values" in tensors and "w" not in tensors and not self.settled:
            self._drop()
        super().fit(tensors)
