"""How a weight change acts: what a linear, a convolution, a norm or an embedding computes with the changed weight.

The stock parameters stay where they are and read as they are: sharding, weight tying and quantisers see the stock model.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Annotated, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from peft_core.errors import PeftError
from peft_core.grafts.graft import Delta
from peft_core.kernels.quantised import packed_linear
from peft_core.kernels.twice import transforms_are_active


def changed_weight(weight: Tensor, deltas: Sequence[Delta]) -> Tensor:
    for delta in deltas:
        if delta.rows is None:
            new = delta(weight)
            weight = new if delta.factor == 1.0 else torch.lerp(weight, new, delta.factor)
        else:
            start, stop = delta.rows
            new = delta(weight[start:stop])
            new = new if delta.factor == 1.0 else torch.lerp(weight[start:stop], new, delta.factor)
            weight = torch.cat((weight[:start], new, weight[stop:]))
    return weight


def changed_bias(bias: Tensor | None, deltas: Sequence[Delta], weight: Tensor | torch.dtype) -> Tensor | None:
    """b' in the dtype of the stock weight; a change may shift where the stock layer has no bias. The dtype alone will do where
    no change makes its shift of the weight."""
    for index, delta in enumerate(deltas):
        start, stop = delta.rows or (0, None)
        part = bias if bias is None or delta.rows is None else bias[start:stop]
        new = delta.bias(part)
        if delta.shifts:
            assert isinstance(weight, Tensor)
            shift = delta.shift(changed_weight(weight, deltas[:index])[start:stop])
            new = shift if new is None else new + shift
        if new is part:
            continue
        assert new is not None
        if delta.factor != 1.0:
            new = torch.lerp(torch.zeros_like(new) if part is None else part, new, delta.factor)
        if delta.rows is None:
            bias = new
        elif bias is None:
            assert isinstance(weight, Tensor)
            bias = F.pad(new, (start, len(weight) - delta.rows[1]))
        else:
            bias = torch.cat((bias[:start], new, bias[stop:]))
    return None if bias is None else bias.to(weight.dtype if isinstance(weight, Tensor) else weight)


_See = Callable[[Delta, Tensor, Tensor], None]
_SEE: ContextVar[_See | None] = ContextVar("peft_core.watching", default=None)


@contextmanager
def watching(see: _See) -> Iterator[None]:
    """Within the block `see(change, rows, y)` is called with what each changed linear or convolution reads and gives: rows
    (…, in), of a convolution the patches under its kernel (B, places, in·kh·kw), and its output y as it goes on."""
    token = _SEE.set(see)
    try:
        yield
    finally:
        _SEE.reset(token)


def tell(y: Tensor, x: Tensor, deltas: Sequence[Delta], module: Any = None) -> Tensor:
    """Says what these changes read and give (of a convolution `module`) where somebody watches; y."""
    see = None if torch.compiler.is_compiling() else _SEE.get()
    if see is None:
        return y
    if module is not None:
        padded = F.pad(x, module._reversed_padding_repeated_twice) if module.padding_mode == "zeros" else None
        if padded is None or module.groups > 1 or x.dim() != 4:
            raise PeftError("the inputs of a grouped, unbatched or otherwise padded convolution cannot be looked at.")
        x = F.unfold(padded, module.kernel_size, module.dilation, 0, module.stride).transpose(1, 2)
    for delta in deltas:
        see(delta, x, y)
    return y


def linear(
    x: Annotated[Tensor, "... in"],
    weight: Annotated[Tensor, "out in"],
    bias: Annotated[Tensor | None, "out"],
    deltas: list[Delta],
) -> Annotated[Tensor, "... out"]:
    """A linear under weight changes: their kernel where they share one, else F.linear with W' and b'."""
    y = stood_in(x, lambda: F.linear(x, weight, bias), bias, deltas) if stand_ins(deltas) else None
    return tell(_linear(x, weight, bias, deltas) if y is None else y, x, deltas)


def stand_ins(deltas: Sequence[Any]) -> list[Any]:
    """Those that give rows of the weight other numbers."""
    return [delta for delta in deltas if delta.stands_in and delta.names]


def stood_in(x: Tensor, stock: Callable[[], Tensor], bias: Tensor | None, deltas: Sequence[Any]) -> Tensor | None:
    """A linear of which stand-ins give rows, or all, packed, while other changes add; None where it takes W' as a tensor.

    Args:
        stock: gives what the stock linear makes of x; called where something of it is left.
    """
    first, others = stand_ins(deltas), [delta for delta in deltas if not delta.stands_in]
    if transforms_are_active() or not all(delta.additive for delta in others):
        return None
    if len(first) == 1 and first[0].rows is None and first[0].factor == 1.0:
        packed, kinds = first[0].held(), {type(delta) for delta in others}
        kernel = kinds.pop().packed_kernel if len(kinds) == 1 else None
        if kernel is not None and not any(delta.reads_input for delta in others):
            return kernel(x, packed, bias, others)  # type: ignore[no-any-return]
        return beside(packed_linear(x, packed, bias), x, others)
    y = stock()
    for delta in first:
        start, stop = delta.rows or (0, y.shape[-1])
        part = packed_linear(x, delta.held(), None if bias is None else bias[start:stop]).to(y.dtype)
        part = part if delta.factor == 1.0 else torch.lerp(y[..., start:stop], part, delta.factor)
        y = torch.cat((y[..., :start], part, y[..., stop:]), -1)
    return beside(y, x, others)


def beside(y: Tensor, x: Tensor, deltas: Sequence[Delta]) -> Tensor:
    """y with what each change adds to it."""
    for delta in deltas:
        y = add_rows(y, added(delta, x, y), delta.rows)
    return y


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None, deltas: list[Delta]) -> Tensor:
    if not deltas:
        return F.linear(x, weight, bias)
    kind, reading = type(deltas[0]), any(delta.reads_input for delta in deltas)
    kernel = kind.kernel if kind.kernel_reads_input or not reading else None
    if kernel is not None and all(type(delta).kernel is kernel for delta in deltas) and not transforms_are_active():
        return kernel(x, weight, bias, deltas)
    if not reading:
        return F.linear(x, changed_weight(weight, deltas), changed_bias(bias, deltas, weight))
    y = _linear(x, weight, bias, [delta for delta in deltas if not delta.reads_input])
    for index, delta in enumerate(deltas):
        if delta.reads_input:
            change = added(delta, x, y)
            if delta.maps_input:
                before = [earlier for earlier in deltas[:index] if not earlier.reads_input]
                change = F.linear(change.to(x.dtype), changed_weight(weight, before))
            y = add_rows(y, change, delta.rows)
    return y


def added(delta: Delta, x: Tensor, y: Tensor) -> Tensor:
    """What a change that is no weight adds to its rows of y, which a linear makes of x."""
    start, stop = delta.rows or (0, None)
    return delta.on_output(y[..., start:stop]) if delta.maps_output else delta.on_input(x, F.linear)


def add_rows(y: Tensor, change: Tensor, rows: tuple[int, int] | None) -> Tensor:
    if rows is None:
        return y + change.to(y.dtype)
    return y + F.pad(change, (rows[0], y.shape[-1] - rows[1])).to(y.dtype)


def convolution(module: Any, x: Tensor, deltas: list[Delta]) -> Tensor:
    """A convolution under weight changes: by its only change's kernel, or as two convolutions, without the dense dW, where
    changes only add."""
    return tell(_convolution(module, x, deltas), x, deltas, module)


def _convolution(module: Any, x: Tensor, deltas: list[Delta]) -> Tensor:
    if len(deltas) == 1 and deltas[0].conv_kernel is not None and not deltas[0].reads_input and x.dim() == 4:
        y = None if transforms_are_active() else deltas[0].conv_kernel(module, x, deltas[0])
        if y is not None:
            return y
    weight, bias = module.weight, module.bias
    if module.groups > 1 and any(delta.reads_input for delta in deltas):
        raise PeftError(
            "a grouped convolution takes no change with dropout or draws of its own: set dropout to 0, or leave it out."
        )
    # of a grouped one s·B A x is not W' x: A would mix the channels of one group alone
    all_add = module.groups == 1 and all(delta.additive for delta in deltas) and x.dim() == 4
    adding = [delta for delta in deltas if all_add or delta.reads_input]
    still = [delta for delta in deltas if delta not in adding]
    y = module._conv_forward(x, changed_weight(weight, still), changed_bias(bias, still, weight))
    for delta in adding:
        y = y + delta.on_input(x, lambda x, a: module._conv_forward(x, a.view(-1, *weight.shape[1:]), None)).to(y.dtype)
    return y
