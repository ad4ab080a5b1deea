"""The fast linear whose outputs are turned in pairs: y = R (W x + b), which keeps y alone for backward.

R acts on each pair of features by a 2 × 2 matrix [[f₀, −s₀], [s₁, f₁]]. W' = R W and b' = R b run at the frozen linear's speed,
where turning what it gives reads and writes it several times. With z = W x + b backward needs Σ g zᵀ of each pair, and z is
R⁻¹ y: Σ g zᵀ = (Σ g yᵀ) R⁻ᵀ; dx = g W'.
"""

from collections.abc import Sequence
from typing import Annotated, Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from peft_core.kernels.column_sums import in_pieces
from peft_core.kernels.lowrank_linear import own_rows
from peft_core.kernels.rebuild import autocast_dtype

SMALL = 1e-3


class Part(NamedTuple):
    """One change: of rows `rows` of the weight feature i is paired with feature i + `half` of its group of 2 · half."""

    rows: tuple[int, int] | None
    half: int


def turned(
    y: Annotated[Tensor, "... out"],
    first: Annotated[Tensor, "groups 2 half"],
    second: Annotated[Tensor, "groups 2 half"],
) -> Annotated[Tensor, "... out"]:
    """R y over the last dimension."""
    f, s = first.unbind(1), second.unbind(1)
    one, other = y.unflatten(-1, (-1, 2, first.shape[-1])).unbind(-2)  # views: y alone is kept for backward
    return torch.stack((one * f[0] - other * s[0], other * f[1] + one * s[1]), -2).flatten(-3)


def turned_rows(
    weight: Annotated[Tensor, "out in"],
    first: Annotated[Tensor, "groups 2 half"],
    second: Annotated[Tensor, "groups 2 half"],
) -> Annotated[Tensor, "out in"]:
    """R W"""
    f, s = (column.unsqueeze(-1).unbind(1) for column in (first, second))
    one, other = weight.unflatten(0, (-1, 2, first.shape[-1])).unbind(1)
    return torch.stack((one * f[0] - other * s[0], other * f[1] + one * s[1]), 1).flatten(0, 2)


@torch.no_grad()
def can_be_undone(first: Tensor, second: Tensor) -> bool:
    """Whether z may be won back from R z: no pair's R is nearly singular."""
    (f0, f1), (s0, s1) = (column.float().unbind(1) for column in (first, second))
    size = f0.square() + f1.square() + s0.square() + s1.square()
    return bool(((f0 * f1 + s0 * s1).abs() > SMALL * size.clamp(min=SMALL)).all())


def _changed(
    weight: Tensor, bias: Tensor | None, parts: tuple[Part, ...], columns: Sequence[Tensor], dtype: torch.dtype
) -> tuple[Tensor, Tensor | None]:
    """W' and b'."""
    if len(parts) == 1 and parts[0].rows is None:
        return turned_rows(weight, *columns).to(dtype), None if bias is None else turned(bias, *columns).to(dtype)
    spans = [part.rows for part in parts if part.rows is not None]
    new, shift = weight.to(dtype), None if bias is None else bias.to(dtype)
    for (start, stop), pair in zip(spans, zip(columns[::2], columns[1::2], strict=True), strict=True):
        new = new.slice_scatter(turned_rows(weight[start:stop], *pair).to(dtype), 0, start, stop)
        if bias is not None and shift is not None:
            shift = shift.slice_scatter(turned(bias[start:stop], *pair).to(dtype), 0, start, stop)
    return new, shift


class _TurnedLinear(torch.autograd.Function):
    # every step of backward can be differentiated again
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, parts: tuple[Part, ...], dtype: torch.dtype | None,
                *columns: Tensor) -> Tensor:  # fmt: skip
        x = x if dtype is None else x.to(dtype)
        with torch.autocast(x.device.type, enabled=False):
            y = F.linear(x, *_changed(weight, bias, parts, columns, x.dtype))
        ctx.parts = parts
        ctx.save_for_backward(y, weight, *columns)
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        y, weight, *columns = ctx.saved_tensors
        g, y = (rows.reshape(-1, rows.shape[-1]).to(y.dtype) for rows in (grad, y))
        dx = None
        if ctx.needs_input_grad[0]:
            new, _ = _changed(weight, None, ctx.parts, columns, y.dtype)
            dx = (g @ new).view(*grad.shape[:-1], weight.shape[1])
        found: list[Tensor] = []
        for part, first, second in zip(ctx.parts, columns[::2], columns[1::2], strict=True):
            same, other = _products(own_rows(g, part), own_rows(y, part), part.half, first.dtype)
            (f0, f1), (s0, s1) = first.unbind(1), second.unbind(1)
            (p11, p22), (p12, p21) = same.unbind(1), other.unbind(1)
            divisor = f0 * f1 + s0 * s1
            of_first = torch.stack(((f1 * p11 + s0 * p12) / divisor, (f0 * p22 - s1 * p21) / divisor), 1)
            of_second = torch.stack(((s1 * p11 - f0 * p12) / divisor, (f1 * p21 + s0 * p22) / divisor), 1)
            found += [of_first, of_second]
        return dx, None, None, None, None, *found


def _products(g: Tensor, y: Tensor, half: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Σ g ⊙ y and Σ g ⊙ (y of the pair's other feature) over the rows, (groups, 2, half), piece by piece in the cache."""
    dtype, same, other = torch.promote_types(dtype, torch.float32), None, None
    for gs, ys in in_pieces(g, y):
        gs, ys = (each.unflatten(1, (-1, 2, half)) for each in (gs, ys))
        pair = (gs * ys).sum(0, dtype=dtype), (gs * ys.flip(-2)).sum(0, dtype=dtype)
        same, other = pair if same is None or other is None else (same + pair[0], other + pair[1])
    assert same is not None and other is not None
    return same, other


def turned_linear(
    x: Annotated[Tensor, "... in"],
    weight: Annotated[Tensor, "out in"],
    bias: Annotated[Tensor | None, "out"],
    parts: Sequence[Part],
    columns: Sequence[Tensor],
) -> Annotated[Tensor, "... out"]:
    """R (x Wᵀ + b) of a frozen W; columns: `first` and `second` of every part in turn, whose R can be undone."""
    return _TurnedLinear.apply(x, weight, bias, tuple(parts), autocast_dtype(x.device.type), *columns)  # type: ignore
