"""The fast linear with a low-rank change: y = x (W + Σ s·B A)ᵀ + b, over rows of W where projections are fused.

Forming W + s·B A once costs r/N of the product itself (N tokens), so forward and dx run at the frozen linear's speed; for
few tokens s·B (A x) is added instead. The gradients come from skinny products and never form the dense dW:
    dA = s · (Bᵀ gᵀ) x        dBᵀ = s · (A xᵀ) g
In this orientation the small factor stands left, which BLAS runs 2–6 times faster than the transposes.
"""

from collections.abc import Iterable, Sequence
from typing import Annotated, Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from peft_core.kernels.rebuild import Recipe, autocast_dtype, cast_of, keep, kept_for, kept_of, pieces, whole
from peft_core.kernels.twice import gradients, is_differentiated

ROWS = 128
"""Of x and g to a thread at a time: both stay in its cache."""


class Part(NamedTuple):
    """One change: `scale` · B A on rows `rows` of the weight."""

    scale: float
    rows: tuple[int, int] | None


def merged(
    weight: Annotated[Tensor, "out in"], parts: tuple[Part, ...], factors: Sequence[Tensor]
) -> Annotated[Tensor, "out in"]:
    """W + Σ s·B A, computed in the factors' precision where that is the higher one."""
    dtype = torch.promote_types(weight.dtype, factors[0].dtype)
    if len(parts) == 1 and parts[0].rows is None:
        return torch.addmm(weight.to(dtype), factors[1], factors[0], alpha=parts[0].scale)
    out = weight.to(dtype, copy=True)
    for (scale, rows), a, b in zip(parts, factors[::2], factors[1::2], strict=True):
        (out if rows is None else out[rows[0] : rows[1]]).addmm_(b, a, alpha=scale)
    return out


def merging_pays(places: int, weight: Tensor) -> bool:
    """Whether forming W + s·B A touches less memory than adding s·B (A x) to y and its like to dx does on `places` tokens.

    Merging reads W, writes W' to fresh memory, which counts twice, reads and writes it once more; adding reads and writes
    y, and dx. Both happen forward and backward.
    """
    if torch.compiler.is_compiling():  # a graph serves batches of any size, and must not ask for it
        return True
    return places * (weight.shape[0] + weight.shape[1]) > 5 * weight.numel()


class _LowRankLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, recipe: Recipe | None, kept: tuple[Tensor, ...],
                parts: tuple[Part, ...], dtype: torch.dtype | None, *factors: Tensor) -> Tensor:  # fmt: skip
        inner, new = None, None
        plain = dtype is None and x.dtype == weight.dtype == factors[0].dtype
        if plain and not merging_pays(x.numel() // x.shape[-1], weight):
            y = F.linear(x, weight, bias)
            inner = stack(factors[::2]) @ x.reshape(-1, x.shape[-1]).t()
            flat = y.view(-1, y.shape[-1])
            for part, up, low in zip(parts, factors[1::2], split(inner, factors), strict=True):
                own_rows(flat, part).addmm_(low.t(), up.t(), alpha=part.scale)
        else:
            x = x if dtype is None else x.to(dtype)
            with torch.autocast(x.device.type, enabled=False):
                new = merged(weight, parts, factors).to(x.dtype)
                y = F.linear(x, new, None if bias is None else bias.to(x.dtype))
        ctx.parts = parts
        keep(ctx, x, recipe, kept, dtype, weight, bias, cast_of(new, weight), inner, *factors)
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        kept, (weight, bias, new, inner, *factors) = kept_of(ctx)
        if is_differentiated():
            x = whole(ctx.recipe, kept)
            dx, dw, db, *rest = gradients(
                lambda x, w, b, *f: F.linear(x, merged(w, ctx.parts, f).to(x.dtype), b),
                (x, weight, bias, *factors), grad, ctx.was_cast,
            )  # fmt: skip
            return dx, dw, db, None, None, None, None, *rest
        g = grad.reshape(-1, grad.shape[-1]).to(ctx.dtype)
        dx = dw = db = None
        if inner is None and not ctx.needs_input_grad[1] and in_pieces_pays(g):
            if ctx.needs_input_grad[0]:
                dx = g @ (merged(weight, ctx.parts, factors).to(g.dtype) if new is None else new)
            d_factors = gradients_in_pieces(pieces(ctx.recipe, kept), g, ctx.parts, factors)
        else:
            back = through_up(g, ctx.parts, factors[1::2])
            if ctx.needs_input_grad[0]:
                if inner is not None:
                    dx = (g @ weight).addmm_(back.t(), stack(factors[::2]))
                else:
                    dx = g @ (merged(weight, ctx.parts, factors).to(g.dtype) if new is None else new)
            own = weight if ctx.needs_input_grad[1] else None
            d_factors, dw = factor_gradients(pieces(ctx.recipe, kept), g, back, ctx.parts, factors, own, inner)
        if dx is not None:
            dx = dx.view(*grad.shape[:-1], weight.shape[1])
        if ctx.needs_input_grad[2]:
            db = g.sum(0)
        return dx, dw, db, None, None, None, None, *d_factors


def through_up(
    g: Annotated[Tensor, "N out"], parts: tuple[Part, ...], ups: Sequence[Tensor]
) -> Annotated[Tensor, "r N"]:
    """s · Bᵀ gᵀ of every part, one above the other: (Σ r, N)."""
    return stack(
        [_scaled(up.to(g.dtype).t() @ own_rows(g, part).t(), part) for part, up in zip(parts, ups, strict=True)]
    )


def factor_gradients(
    inputs: Iterable[Tensor],
    g: Tensor,
    back: Tensor,
    parts: tuple[Part, ...],
    factors: Sequence[Tensor],
    weight: Tensor | None,
    inner: Tensor | None = None,
) -> tuple[list[Tensor], Tensor | None]:
    """dA, dB of every part, and dW where a weight is given. inputs: x N in, piece by piece · g: N out · back: s · Bᵀ gᵀ ·
    inner: A xᵀ of every part where it is known."""
    downs = factors[::2]
    stacked = stack([a.to(g.dtype) for a in downs]) if inner is None else None
    low, d_down, dw, start = [], [], [], 0
    for x in inputs:
        x, rows = x.to(g.dtype), slice(start, start := start + len(x))
        if stacked is not None:
            low.append(stacked @ x.t())
        d_down.append(back[:, rows] @ x)
        if weight is not None:
            dw.append(g[rows].t() @ x)
    inner = (low[0] if len(low) == 1 else torch.cat(low, 1)) if inner is None else inner
    d_up = [_scaled(low @ own_rows(g, part), part).t() for part, low in zip(parts, split(inner, factors), strict=True)]
    pairs = zip(downs, split(_sum(d_down), factors), d_up, strict=True)
    return [grad.to(a.dtype) for a, *pair in pairs for grad in pair], None if weight is None else _sum(dw)


def in_pieces_pays(g: Tensor) -> bool:
    """Whether the skinny products are bound by reading x and g, each of them twice: on a CPU, in its own precision."""
    if torch.compiler.is_compiling() or g.device.type != "cpu" or g.element_size() < 4:
        return False
    return len(g) > ROWS * torch.get_num_threads()


def gradients_in_pieces(
    inputs: Iterable[Tensor], g: Annotated[Tensor, "N out"], parts: tuple[Part, ...], factors: Sequence[Tensor]
) -> list[Tensor]:
    """dA, dB of every part, so many rows at a time that x and g are read from memory once."""
    downs, ups = factors[::2], factors[1::2]
    stacked = stack([a.to(g.dtype) for a in downs])
    turned = [up.to(g.dtype).t().contiguous() for up in ups]
    d_down, d_ups = torch.zeros_like(stacked), [torch.zeros_like(up) for up in turned]
    rows, start = ROWS * torch.get_num_threads(), 0
    for x in inputs:
        own, start = g[start : start + len(x)], start + len(x)
        for xs, gs in zip(x.to(g.dtype).split(rows), own.split(rows), strict=True):
            mine = [own_rows(gs, part) for part in parts]
            d_down.addmm_(stack([up @ each.t() for up, each in zip(turned, mine, strict=True)]), xs)
            for d_up, low, each in zip(d_ups, split(stacked @ xs.t(), factors), mine, strict=True):
                d_up.addmm_(low, each)
    pairs = zip(downs, split(d_down, factors), d_ups, parts, strict=True)
    return [_scaled(grad, part).to(a.dtype) for a, down, up, part in pairs for grad in (down, up.t())]


def split(rows: Tensor, factors: Sequence[Tensor]) -> Sequence[Tensor]:
    """(Σ r, …) into the parts' (r, …)."""
    return (rows,) if len(factors) == 2 else rows.split([len(a) for a in factors[::2]])


def _scaled(x: Tensor, part: Part) -> Tensor:
    return x if part.scale == 1.0 else x.mul_(part.scale)


def _sum(parts: list[Tensor]) -> Tensor:
    """In float32 or better, whatever the pieces' precision."""
    dtype = torch.promote_types(parts[0].dtype, torch.float32)
    return parts[0] if len(parts) == 1 else torch.stack(parts).sum(0, dtype=dtype)


def stack(rows: Sequence[Tensor]) -> Tensor:
    return rows[0] if len(rows) == 1 else torch.cat(list(rows))


def own_rows(y: Annotated[Tensor, "... out"], part: Any) -> Tensor:
    """Of what a linear gives, what the part's rows of the weight make."""
    return y if part.rows is None else y[..., part.rows[0] : part.rows[1]]


def parts_and_factors(deltas: Sequence[Any]) -> tuple[tuple[Part, ...], list[Tensor]]:
    """The changes, and what `factors()` of each gives, one after another."""
    parts = tuple(Part(delta.scale * delta.factor, delta.rows) for delta in deltas)
    return parts, [factor for delta in deltas for factor in delta.factors()]


def lowrank_linear(
    x: Annotated[Tensor, "... in"],
    weight: Annotated[Tensor, "out in"],
    bias: Annotated[Tensor | None, "out"],
    deltas: list[Any],
) -> Annotated[Tensor, "... out"]:
    """F.linear(x, W + Σ s·B A, b): x (…, in), W (out, in), A (r, in) and B (rows, r) of `delta.factors()`."""
    parts, factors = parts_and_factors(deltas)
    return _LowRankLinear.apply(  # type: ignore[no-any-return]
        x, weight, bias, *kept_for(x), parts, autocast_dtype(x.device.type), *factors
    )
