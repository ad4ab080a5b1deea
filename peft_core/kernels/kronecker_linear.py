"""The fast linear with a Kronecker change: y = x (W + s·Σ_g w1_g ⊗ w2_g)ᵀ + b, over rows of W where projections are fused.

With in = m·n and out = l·k an input x is a matrix X (m, n), and (w1 ⊗ w2) x is w1 X w2ᵀ (l, k): the product of the small
factors is formed once for forward and again for dx, never kept, and for few tokens not at all. With dY = g (l, k)
    dw1 = s · Σ dY w2 Xᵀ        dw2 = s · Σ dYᵀ w1 X
come without the dense dW where that is less work; where it is more (many groups, large factors), dW is formed and let go.
"""

from collections.abc import Sequence
from typing import Annotated, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from peft_core.kernels.lowrank_linear import Part, own_rows, parts_and_factors
from peft_core.kernels.rebuild import Recipe, autocast_dtype, keep, kept_for, kept_of, pieces, whole
from peft_core.kernels.twice import gradients, is_differentiated


def kronecker_sum(
    w1: Annotated[Tensor, "G l m"], w2: Annotated[Tensor, "G k n ..."]
) -> Annotated[Tensor, "l k m n ..."]:
    """Σ_g w1_g ⊗ w2_g, its rows and columns still split."""
    product = (w1.flatten(1).t() @ w2.flatten(1)).view(*w1.shape[1:], *w2.shape[1:])
    return product.transpose(1, 2)


def merged(weight: Tensor, parts: tuple[Part, ...], factors: Sequence[Tensor]) -> Tensor:
    """W + Σ s·w1 ⊗ w2, computed in the factors' precision where that is the higher one."""
    dtype = torch.promote_types(weight.dtype, factors[0].dtype)
    out = weight.to(dtype, copy=True, memory_format=torch.contiguous_format)
    for (scale, rows), w1, w2 in zip(parts, factors[::2], factors[1::2], strict=True):
        change = kronecker_sum(w1, w2)
        (out if rows is None else out[rows[0] : rows[1]]).view(change.shape).add_(change, alpha=scale)
    return out


def through(
    x: Annotated[Tensor, "... in"], w1: Annotated[Tensor, "G l m"], w2: Annotated[Tensor, "G k n"]
) -> Annotated[Tensor, "... out"]:
    """Σ_g (w1_g ⊗ w2_g) x, by way of X (m, n)."""
    split = x.unflatten(-1, (w1.shape[2], w2.shape[2]))
    found = [torch.matmul(one, split @ two.t()).flatten(-2) for one, two in zip(w1, w2, strict=True)]
    return found[0] if len(found) == 1 else torch.stack(found).sum(0)


def merging_pays(places: int, weight: Tensor, factors: Sequence[Tensor]) -> bool:
    """Whether forming W' is less work than sending `places` tokens through the factors, group by group."""
    if torch.compiler.is_compiling():  # a graph serves batches of any size, and must not ask for it
        return True
    groups = sum(len(w1) for w1 in factors[::2])
    return places * groups * sum(weight.shape) > weight.numel()


def skinny_pays(w1: Tensor, w2: Tensor) -> bool:
    """Whether dw1 and dw2 by way of X and dY are less than a third of the dense dW's work: batched small products are slow."""
    (groups, rows, columns), (height, width) = w1.shape, w2.shape[1:]
    out, inner = rows * height, columns * width
    return 3 * groups * (inner * (rows + height) + out * (width + columns)) < out * inner


class _KroneckerLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, recipe: Recipe | None, kept: tuple[Tensor, ...],
                parts: tuple[Part, ...], dtype: torch.dtype | None, *factors: Tensor) -> Tensor:  # fmt: skip
        plain = dtype is None and x.dtype == weight.dtype == factors[0].dtype
        ctx.added = plain and not merging_pays(x.numel() // x.shape[-1], weight, factors)
        x = x if dtype is None else x.to(dtype)
        with torch.autocast(x.device.type, enabled=False):
            if ctx.added:
                y = F.linear(x, weight, bias)
                for part, w1, w2 in zip(parts, factors[::2], factors[1::2], strict=True):
                    own_rows(y, part).add_(through(x, w1, w2), alpha=part.scale)
            else:
                y = F.linear(x, merged(weight, parts, factors).to(x.dtype), None if bias is None else bias.to(x.dtype))
        ctx.parts = parts
        keep(ctx, x, recipe, kept, dtype, weight, bias, *factors)
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        kept, (weight, bias, *factors) = kept_of(ctx)
        if is_differentiated():
            dx, dw, db, *rest = gradients(
                lambda x, w, b, *f: F.linear(x, _plain(w, ctx.parts, f).to(x.dtype), b),
                (whole(ctx.recipe, kept), weight, bias, *factors), grad, ctx.was_cast,
            )  # fmt: skip
            return dx, dw, db, None, None, None, None, *rest
        g = grad.reshape(-1, grad.shape[-1]).to(ctx.dtype)
        dx = db = None
        if ctx.needs_input_grad[0]:
            if ctx.added:
                dx = g @ weight
                for part, w1, w2 in zip(ctx.parts, factors[::2], factors[1::2], strict=True):
                    dx.add_(through(own_rows(g, part), w1.mT, w2.mT), alpha=part.scale)
            else:
                dx = g @ merged(weight, ctx.parts, factors).to(g.dtype)
            dx = dx.view(*grad.shape[:-1], weight.shape[1])
        d_factors, dw = _factor_gradients(ctx, pieces(ctx.recipe, kept), g, factors, ctx.needs_input_grad[1])
        if ctx.needs_input_grad[2]:
            db = g.sum(0)
        return dx, dw, db, None, None, None, None, *d_factors


def _factor_gradients(ctx: Any, inputs: Any, g: Tensor, factors: Sequence[Tensor], dense: bool
                      ) -> tuple[list[Tensor], Tensor | None]:  # fmt: skip
    """dw1, dw2 of every part, and dW where it is asked for."""
    # sums over pieces are in float32 or better
    sums = [torch.zeros_like(f, dtype=torch.promote_types(f.dtype, torch.float32)) for f in factors]
    dw, start = None, 0
    for x in inputs:
        x, now = x.to(g.dtype), g[start : start + len(x)]
        start += len(x)
        if dense:
            dw = now.t() @ x if dw is None else dw + now.t() @ x
        for index, part in enumerate(ctx.parts):
            w1, w2 = (f.to(g.dtype) for f in factors[2 * index : 2 * index + 2])
            d1, d2 = _pair_gradients(own_rows(now, part), x, w1, w2)
            sums[2 * index].add_(d1, alpha=part.scale)
            sums[2 * index + 1].add_(d2, alpha=part.scale)
    return [total.to(f.dtype) for total, f in zip(sums, factors, strict=True)], dw


def _pair_gradients(g: Tensor, x: Tensor, w1: Tensor, w2: Tensor) -> tuple[Tensor, Tensor]:
    (_, rows, columns), (height, width) = w1.shape, w2.shape[1:]
    if not skinny_pays(w1, w2):
        dense = (g.t() @ x).view(rows, height, columns, width).transpose(1, 2).reshape(rows * columns, -1)
        return (dense @ w2.flatten(1).t()).t().view(w1.shape), (w1.flatten(1) @ dense).view(w2.shape)
    split, grad = x.unflatten(1, (columns, width)), g.unflatten(1, (rows, height))
    tall = grad.reshape(-1, height).t()
    d1 = [torch.bmm(grad, (split @ two.t()).transpose(1, 2)).sum(0) for two in w2]
    d2 = [tall @ torch.matmul(one, split).view(-1, width) for one in w1]
    return torch.stack(d1), torch.stack(d2)


def _plain(weight: Tensor, parts: tuple[Part, ...], factors: Sequence[Tensor]) -> Tensor:
    """What `merged` gives, by operations that autograd follows."""
    for (scale, rows), w1, w2 in zip(parts, factors[::2], factors[1::2], strict=True):
        change = scale * kronecker_sum(w1, w2).reshape(-1, weight.shape[1])
        if rows is not None:
            change = F.pad(change, (0, 0, rows[0], weight.shape[0] - rows[1]))
        weight = weight + change
    return weight


def kronecker_linear(
    x: Annotated[Tensor, "... in"],
    weight: Annotated[Tensor, "out in"],
    bias: Annotated[Tensor | None, "out"],
    deltas: list[Any],
) -> Annotated[Tensor, "... out"]:
    """F.linear(x, W + Σ s·Σ_g w1_g ⊗ w2_g, b): x (…, in), W (out, in); a delta's `factors()` are w1 (G, l, m), w2 (G, k, n)."""
    parts, factors = parts_and_factors(deltas)
    return _KroneckerLinear.apply(  # type: ignore[no-any-return]
        x, weight, bias, *kept_for(x), parts, autocast_dtype(x.device.type), *factors
    )
