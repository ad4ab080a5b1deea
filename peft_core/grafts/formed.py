"""Dense weight changes, whose W' is formed again for the backward and never kept.

The kernel sees everything that a change reads as tensors of its own (so functional_call, sharding and saved-tensor hooks see
them too), and runs the change in a copy of it that holds these in their places: no module is touched, whoever else runs it.
"""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Annotated, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from peft_core.grafts.graft import Delta
from peft_core.grafts.shared import Reference
from peft_core.grafts.weight_changes import changed_bias, changed_weight
from peft_core.kernels.formed import Form, formed


class Slot:
    """Where a tensor stood."""

    def __init__(self, index: int) -> None:
        self.index = index


class Found:
    """A reference's value."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def __call__(self) -> Any:
        return self.value


_WITHOUT = frozenset((bool, int, float, str, type(None), OrderedDict, set))
"""What holds no tensors; a module's hooks are in an OrderedDict."""


def replaced(value: Any, put: Callable[[Any], Any]) -> Any:
    """A copy of a module, or of what one holds, with put(…) in place of every tensor and slot. A reference becomes one to what
    it finds now."""
    if isinstance(value, Tensor | Slot):
        return put(value)
    if isinstance(value, nn.Module):
        copy = object.__new__(type(value))
        copy.__dict__.update(_each(value.__dict__, put))
        return copy
    kind = type(value)
    if kind is dict:
        return _each(value, put)
    if kind is Reference or kind is Found:
        return Found(replaced(value(), put))
    if kind is tuple or kind is list:
        return kind(replaced(each, put) for each in value)
    return value


def _each(named: dict[str, Any], put: Callable[[Any], Any]) -> dict[str, Any]:
    return {name: each if type(each) in _WITHOUT else replaced(each, put) for name, each in named.items()}


def taken_apart(deltas: Sequence[Delta]) -> tuple[Form, list[Tensor]]:
    """What changes make of W and b, as they stand now, as a function of their tensors; and these."""
    tensors: list[Tensor] = []

    def take(tensor: Tensor) -> Slot:
        tensors.append(tensor)
        return Slot(len(tensors) - 1)

    frame = [replaced(delta, take) for delta in deltas]

    def form(weight: Tensor, bias: Tensor | None, tensors: Sequence[Tensor]) -> tuple[Tensor, Tensor | None]:
        changes = [replaced(delta, lambda slot: tensors[slot.index]) for delta in frame]
        return changed_weight(weight, changes), changed_bias(bias, changes, weight)

    return form, tensors


def _is_plain() -> bool:
    # a compiled graph decides by itself what it keeps
    return torch.compiler.is_compiling() or not torch.is_grad_enabled()


def formed_linear(
    x: Annotated[Tensor, "... in"],
    weight: Annotated[Tensor, "out in"],
    bias: Annotated[Tensor | None, "out"],
    deltas: Sequence[Any],
) -> Annotated[Tensor, "... out"]:
    """F.linear(x, W', b'), which keeps neither W' nor what the changes make on the way."""
    if _is_plain():
        return F.linear(x, changed_weight(weight, deltas), changed_bias(bias, deltas, weight))
    form, tensors = taken_apart(deltas)
    return formed(x, weight, bias, form, tensors)


def formed_conv(module: Any, x: Tensor, delta: Any) -> Tensor | None:
    """The convolution of `module` likewise; None where it is not a zero-padded one, or need not be."""
    if _is_plain() or module.padding_mode != "zeros" or isinstance(module.padding, str):
        return None
    form, tensors = taken_apart([delta])
    geometry = (module.stride, module.padding, module.dilation, module.groups)
    return formed(x, module.weight, module.bias, form, tensors, geometry)


class Formed(Delta):
    """A change that may be formed twice: `forward`, `bias` and `shift` draw nothing, and read no tensor that trains but the
    parameters, buffers and references of its own and of its children. Others take Delta, and autograd keeps what they make."""

    rebuilds_input = True
    kernel = staticmethod(formed_linear)
    conv_kernel = staticmethod(formed_conv)
