"""The linear under W' = W + diag(b) B diag(d) A with frozen A and B: y = x W'ᵀ + c keeps x's source and the two vectors alone.

It is a low-rank change of factors diag(d) A and diag(b) B, which are formed again where they are wanted, as W' is:
    dd = Σ_j (∂L/∂(diag(d) A) ⊙ A)_·j        db = Σ_j (∂L/∂(diag(b) B) ⊙ B)_·j
"""

from collections.abc import Sequence
from typing import Annotated, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from peft_core.kernels.lowrank_linear import Part, factor_gradients, merged, through_up
from peft_core.kernels.rebuild import Recipe, autocast_dtype, keep, kept_for, kept_of, pieces, whole
from peft_core.kernels.twice import gradients, is_differentiated


def factors_of(quads: Sequence[Tensor]) -> list[Tensor]:
    """diag(d) A and diag(b) B of every part in turn; quads: d (r), A (r, in), b (out), B (out, r) of every part."""
    return [vector[:, None] * matrix for vector, matrix in zip(quads[::2], quads[1::2], strict=True)]


class _VectorPairLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, recipe: Recipe | None, kept: tuple[Tensor, ...],
                parts: tuple[Part, ...], dtype: torch.dtype | None, *quads: Tensor) -> Tensor:  # fmt: skip
        x = x if dtype is None else x.to(dtype)
        with torch.autocast(x.device.type, enabled=False):
            new = merged(weight, parts, factors_of(quads)).to(x.dtype)
            y = F.linear(x, new, None if bias is None else bias.to(x.dtype))
        ctx.parts = parts
        keep(ctx, x, recipe, kept, dtype, weight, bias, *quads)
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        kept, (weight, bias, *quads) = kept_of(ctx)
        if is_differentiated():
            dx, dw, db, *rest = gradients(
                lambda x, w, b, *q: F.linear(x, merged(w, ctx.parts, factors_of(q)).to(x.dtype), b),
                (whole(ctx.recipe, kept), weight, bias, *quads), grad, ctx.was_cast,
            )  # fmt: skip
            return dx, dw, db, None, None, None, None, *rest
        factors = factors_of(quads)
        g = grad.reshape(-1, grad.shape[-1]).to(ctx.dtype)
        of_input, of_weight, of_bias = ctx.needs_input_grad[:3]
        dx = (g @ merged(weight, ctx.parts, factors).to(g.dtype)).view(*grad.shape[:-1], -1) if of_input else None
        back = through_up(g, ctx.parts, factors[1::2])
        inputs = pieces(ctx.recipe, kept)
        of_factors, dw = factor_gradients(inputs, g, back, ctx.parts, factors, weight if of_weight else None)
        rest: list[Tensor | None] = []
        for vector, matrix, of_factor in zip(quads[::2], quads[1::2], of_factors, strict=True):
            rest += [(of_factor * matrix).sum(1).to(vector.dtype), None]
        return dx, dw, g.sum(0) if of_bias else None, None, None, None, None, *rest


def vector_pair_linear(
    x: Annotated[Tensor, "... in"],
    weight: Annotated[Tensor, "out in"],
    bias: Annotated[Tensor | None, "out"],
    deltas: list[Any],
) -> Annotated[Tensor, "... out"]:
    """F.linear(x, W + Σ diag(b) B diag(d) A, c), with d, A, b, B of each `delta.quad()`."""
    parts = tuple(Part(delta.factor, delta.rows) for delta in deltas)
    quads = [tensor for delta in deltas for tensor in delta.quad()]
    return _VectorPairLinear.apply(  # type: ignore[no-any-return]
        x, weight, bias, *kept_for(x), parts, autocast_dtype(x.device.type), *quads
    )
