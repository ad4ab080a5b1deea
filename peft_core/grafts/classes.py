"""Swapped classes: a changed module's class becomes a subclass of it whose forward runs with the changed weight.

The subclass keeps the stock parameters, adds none, and pickles by its stock class's name. Where a forward is not ours (a
norm's own, an attention that reads its linear's weight without calling it) the weight reads as changed within that
forward and in its thread alone; whoever else reads it gets the stock tensor.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from peft_core.grafts.calls import state
from peft_core.grafts.graft import Delta, grafts, is_plain
from peft_core.grafts.weight_changes import (
    beside,
    changed_bias,
    changed_weight,
    convolution,
    linear,
    stand_ins,
    stood_in,
    tell,
)
from peft_core.kernels.quantised import Packed, dense, packed_linear, packed_of
from peft_core.kernels.twice import transforms_are_active

_READING = "peft_core.reading"
"""Where the state of a forward has the modules whose weights read as changed."""


class Adapted:
    """Mixed in before the stock class."""

    stock_class: ClassVar[type]
    mixins: ClassVar[tuple[type, ...]]

    def __reduce_ex__(self, protocol: Any) -> tuple:
        return _blank, (self.stock_class, self.mixins), self.__getstate__()


class Changes(Adapted):
    """Runs with weights that grafts change."""

    def _load_from_state_dict(self: Any, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        super()._load_from_state_dict(state_dict, prefix, *args)  # type: ignore[misc]
        for name in ("weight", "in_proj_weight"):
            if f"{prefix}{name}" in state_dict and (weight := self._parameters.get(name)) is not None:
                for slots in self._modules.get("peft", {}).values():
                    for delta in (graft for graft in slots.values() if isinstance(graft, Delta)):
                        delta.stock_loaded(weight if delta.rows is None else weight[slice(*delta.rows)])


class Still(Adapted):
    """A norm of the frozen part: whatever mode the model is in, its running statistics stay as they are."""

    def train(self: Any, mode: bool = True) -> Any:
        return super().train(False)  # type: ignore[misc]


class AdaptedLinear(Changes):
    def forward(self: Any, input: Tensor) -> Tensor:
        deltas = list(grafts(self, Delta))
        if deltas and not is_plain(self.weight):
            return _beside(super().forward(input), input, deltas)  # type: ignore[misc]
        return linear(input, self.weight, self.bias, deltas)


class OpaqueLinear(Changes):
    """A linear with a forward of its own, such as a quantised one: changes that add run beside it."""

    def forward(self: Any, input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        deltas = list(grafts(self, Delta))
        packed = packed_of(self) if deltas and not args and not kwargs else None
        if stand_ins(deltas):
            return self._stood_in(input, deltas, packed, *args, **kwargs)
        if packed is None or self._has_another_inference(packed):
            return _beside(super().forward(input, *args, **kwargs), input, deltas)  # type: ignore[misc]
        if transforms_are_active():
            return _beside(F.linear(input, dense(packed, input.dtype), self.bias), input, deltas)
        kind = type(deltas[0])
        if kind.packed_kernel is not None and all(type(delta) is kind and not delta.reads_input for delta in deltas):
            return tell(kind.packed_kernel(input, packed, self.bias, deltas), input, deltas)
        return _beside(packed_linear(input, packed, self.bias), input, deltas)

    def _stood_in(
        self: Any, input: Tensor, deltas: list[Delta], packed: Packed | None, *args: Any, **kwargs: Any
    ) -> Tensor:
        stock: Any = super().forward  # type: ignore[misc]
        y = stood_in(input, lambda: stock(input, *args, **kwargs), self.bias, deltas)  # type: ignore[misc]
        if y is None:
            weight = torch.empty(self.out_features, self.in_features) if packed is None else dense(packed, input.dtype)
            y = F.linear(input, changed_weight(weight.to(input), deltas), self.bias)
        return tell(y, input, deltas)

    def _has_another_inference(self: Any, packed: Packed) -> bool:
        """bitsandbytes' 8-bit linear rounds its inputs, too, in eval: off or at step 0 the adapted one gives the same."""
        return packed.kind == "rows" and not self.training


class AdaptedConvolution(Changes):
    def forward(self: Any, input: Tensor) -> Tensor:
        return convolution(self, input, list(grafts(self, Delta)))


class AdaptedEmbedding(Changes):
    def forward(self: Any, input: Tensor) -> Tensor:
        table = self.weight
        # ids behind the table are those of tokens that a change adds: a changed table is never formed
        rows = F.embedding(input.clamp(max=len(table) - 1), table)
        for delta in grafts(self, Delta):
            rows = delta.look_up(input, rows)
        return rows


class AffineNorm(Changes):
    """A norm runs its own forward with W' and b'; where it has no bias, a shift is added to what it gives."""

    def forward(self: Any, input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        with reading(self):
            y = super().forward(input, *args, **kwargs)  # type: ignore[misc]
        if self._parameters.get("bias") is None and getattr(self, "bias", None) is None:
            shift = changed_bias(None, list(grafts(self, Delta)), self.weight)
            if shift is not None:
                shift = shift.to(y.dtype)
                y = y + shift.view(-1, *[1] * (y.dim() - 2)) if channels_first(self) else y + shift
        return y


class ReadWithin(Changes):
    """A module that its owner reads the weight of and does not call."""


class Reader(Changes):
    """The owner: within its forward the weights of its children read as changed."""

    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        with reading(*(child for child in self.children() if isinstance(child, ReadWithin))):  # type: ignore
            return super().forward(*args, **kwargs)  # type: ignore[misc]


@contextmanager
def reading(*modules: nn.Module) -> Iterator[None]:
    here = state()
    before = here.get(_READING, ())
    here[_READING] = (*before, *modules)
    try:
        yield
    finally:
        here[_READING] = before


def channels_first(norm: nn.Module) -> bool:
    return isinstance(norm, nn.GroupNorm | nn.modules.batchnorm._BatchNorm) or type(norm).__name__.rstrip(
        "Fp32"
    ).endswith("2d")


def _beside(y: Tensor, x: Tensor, deltas: list[Delta]) -> Tensor:
    return tell(beside(y, x, deltas), x, deltas)


def _effective(name: str) -> property:
    def stock_of(self: nn.Module, name: str = name) -> Tensor | None:
        # a replica under DataParallel holds plain tensors in place of parameters
        return self._parameters[name] if name in self._parameters else self.__dict__.get(name)

    def read(self: nn.Module) -> Tensor | None:
        stock = stock_of(self)
        if not any(module is self for module in state().get(_READING, ())):
            return stock
        deltas = list(grafts(self, Delta))
        if not deltas or (stock is None and name == "bias"):
            return stock
        if name == "weight":
            return changed_weight(stock, deltas)  # type: ignore[arg-type]
        return changed_bias(stock, deltas, stock_of(self, "weight"))  # type: ignore[arg-type]

    def write(self: nn.Module, value: Any) -> None:
        self.__dict__[name] = value

    return property(read, write)


_READ = (AffineNorm, ReadWithin)
_classes: dict[tuple[type, tuple[type, ...]], type] = {}


def mixin_of(module: nn.Module) -> type:
    """How weight changes act on a module, by what its own forward is."""
    from peft_core.grafts.attention import AdaptedAttention

    forward: Any = getattr(type(module), "forward", None)
    if isinstance(module, nn.MultiheadAttention):
        return AdaptedAttention
    weight = vars(module).get("_parameters", {}).get("weight")  # a pickle's blank instance has none yet
    if forward is nn.Linear.forward and (weight is None or is_plain(weight)):
        return AdaptedLinear
    if isinstance(module, nn.Linear) or hasattr(module, "in_features"):
        return OpaqueLinear
    if forward in (nn.Conv1d.forward, nn.Conv2d.forward, nn.Conv3d.forward):
        return AdaptedConvolution
    if forward is nn.Embedding.forward:
        return AdaptedEmbedding
    return AffineNorm


def adapted_class(stock: type, mixins: tuple[type, ...]) -> type:
    """The subclass of `stock` with these mixins; made once."""
    if (stock, mixins) not in _classes:
        body: dict[str, Any] = {
            "stock_class": stock,
            "mixins": mixins,
            "__module__": __name__,
            "__doc__": stock.__doc__,
        }
        if any(issubclass(mixin, _READ) for mixin in mixins):
            body |= {name: _effective(name) for name in ("weight", "bias")}
        _classes[stock, mixins] = type(f"Adapted{stock.__name__}", (*mixins, stock), body)
    return _classes[stock, mixins]


def _empty(stock: type) -> Any:
    """A module of a class without its own construction, with a weight to tell its kind by."""
    module: Any = stock.__new__(stock)  # type: ignore
    nn.Module.__init__(module)
    module.weight = nn.Parameter(torch.empty(0))
    return module


def _blank(stock: type, mixins: tuple[Any, ...]) -> Any:
    # before a class could have several mixins, pickles held its parameters' names in their place
    known = tuple(mixin for mixin in mixins if isinstance(mixin, type)) or (mixin_of(_empty(stock)),)
    cls: Any = adapted_class(stock, known)
    return cls.__new__(cls)


def swap_class(module: nn.Module, mixin: type | None = None) -> None:
    """Give a module's class a mixin, by default the one that weight changes need; once."""
    mixin = mixin or (None if isinstance(module, Changes) else mixin_of(module))
    if mixin is None or isinstance(module, mixin):
        return
    stock, mixins = (module.stock_class, module.mixins) if isinstance(module, Adapted) else (type(module), ())
    module.__class__ = adapted_class(stock, (mixin, *mixins))


def restore_class(module: nn.Module, *mixins: type) -> None:
    """Take mixins off a module's class again; all of them where none is named."""
    if isinstance(module, Adapted):
        kept = tuple(mixin for mixin in module.mixins if mixins and not issubclass(mixin, mixins))
        module.__class__ = adapted_class(module.stock_class, kept) if kept else module.stock_class  # type: ignore[assignment]
