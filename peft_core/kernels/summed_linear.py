"""The fast linear whose change reads sums of its inputs: y = x (W + Σ s·U S)ᵀ + b, S x = Σ_g x[g·r : (g+1)·r].

U S is U again and again along the inputs, so W' is formed by additions alone, where U (S x) costs a product of r/in of the
linear's, and another backward. Forward and dx run at the frozen linear's speed; dUᵀ = s · (S x)ᵀ g.
"""

from collections.abc import Sequence
from typing import Annotated, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from peft_core.kernels.lowrank_linear import Part, own_rows
from peft_core.kernels.rebuild import Recipe, autocast_dtype, cast_of, keep, kept_for, kept_of, pieces, whole
from peft_core.kernels.sparse import product
from peft_core.kernels.twice import gradients, is_differentiated


def summed(x: Annotated[Tensor, "... in"], size: int) -> Annotated[Tensor, "... r"]:
    """S x; the last piece may be shorter."""
    x = x if x.shape[-1] % size == 0 else F.pad(x, (0, -x.shape[-1] % size))
    return x.unflatten(-1, (-1, size)).sum(-2)


def merged(
    weight: Annotated[Tensor, "out in"], parts: tuple[Part, ...], ups: Sequence[Tensor]
) -> Annotated[Tensor, "out in"]:
    """W + Σ s·U S, computed in the factors' precision where that is the higher one."""
    out = weight.to(torch.promote_types(weight.dtype, ups[0].dtype), copy=True)
    for (scale, rows), up in zip(parts, ups, strict=True):
        own, size = out if rows is None else out[rows[0] : rows[1]], up.shape[1]
        even = own.shape[1] - own.shape[1] % size
        up = up.contiguous()
        own[:, :even].unflatten(1, (-1, size)).add_(up.unsqueeze(1), alpha=scale)
        if even < own.shape[1]:
            own[:, even:].add_(up[:, : own.shape[1] - even], alpha=scale)
    return out


class _SummedLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, recipe: Recipe | None, kept: tuple[Tensor, ...],
                parts: tuple[Part, ...], dtype: torch.dtype | None, *ups: Tensor) -> Tensor:  # fmt: skip
        x = x if dtype is None else x.to(dtype)
        with torch.autocast(x.device.type, enabled=False):
            new = merged(weight, parts, ups).to(x.dtype)
            y = F.linear(x, new, None if bias is None else bias.to(x.dtype))
        ctx.parts = parts
        keep(ctx, x, recipe, kept, dtype, weight, bias, cast_of(new, weight), *ups)
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        parts = ctx.parts
        kept, (weight, bias, new, *ups) = kept_of(ctx)
        if is_differentiated():
            dx, dw, db, *rest = gradients(
                lambda x, w, b, *u: F.linear(x, merged(w, parts, u).to(x.dtype), b),
                (whole(ctx.recipe, kept), weight, bias, *ups), grad, ctx.was_cast,
            )  # fmt: skip
            return dx, dw, db, None, None, None, None, *rest
        g = grad.reshape(-1, grad.shape[-1]).to(ctx.dtype)
        dx = dw = db = None
        if ctx.needs_input_grad[0]:
            dx = g @ (merged(weight, parts, ups).to(g.dtype) if new is None else new)
            dx = dx.view(*grad.shape[:-1], weight.shape[1])
        inputs = [piece.to(g.dtype) for piece in pieces(ctx.recipe, kept)] if ctx.needs_input_grad[1] else None
        if inputs is not None:
            dw = product(inputs, g)
        sizes = [up.shape[1] for up in ups]
        sums: dict[int, list[Tensor]] = {size: [] for size in sizes}
        for x in inputs or pieces(ctx.recipe, kept):
            for size, found in sums.items():
                found.append(summed(x.to(g.dtype), size))
        lows = {size: found[0] if len(found) == 1 else torch.cat(found) for size, found in sums.items()}
        # the small factor left (see lowrank_linear)
        d_ups = [
            (lows[up.shape[1]].t() @ own_rows(g, part)).mul_(part.scale).t().to(up.dtype)
            for part, up in zip(parts, ups, strict=True)
        ]
        if ctx.needs_input_grad[2]:
            db = g.sum(0)
        return dx, dw, db, None, None, None, None, *d_ups


def summed_linear(
    x: Annotated[Tensor, "... in"],
    weight: Annotated[Tensor, "out in"],
    bias: Annotated[Tensor | None, "out"],
    deltas: list[Any],
) -> Annotated[Tensor, "... out"]:
    """F.linear(x, W + Σ s·U S, b): x (…, in), W (out, in), U (rows, r) of `delta.up()`."""
    parts = tuple(Part(delta.factor, delta.rows) for delta in deltas)
    return _SummedLinear.apply(  # type: ignore[no-any-return]
        x, weight, bias, *kept_for(x), parts, autocast_dtype(x.device.type), *(delta.up() for delta in deltas)
    )
