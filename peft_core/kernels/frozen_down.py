"""The linear with a low-rank change whose A is frozen: y = x (W + s·B A)ᵀ + b keeps A x (r a token) in place of x.

A x is an ordinary product before it, which autograd follows and keeps nothing for, as A takes no gradient; forward and dx
run with W + s·B A, as the low-rank linear's do, and dB = s · gᵀ (A x) needs no x.
"""

from typing import Annotated, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from peft_core.kernels.lowrank_linear import Part, lowrank_linear, merged, merging_pays, own_rows, parts_and_factors
from peft_core.kernels.rebuild import autocast_dtype, cast_of
from peft_core.kernels.twice import gradients, is_differentiated


class _FrozenDownLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, parts: tuple[Part, ...], dtype: torch.dtype | None,
                *tensors: Tensor) -> Tensor:  # fmt: skip
        inner, factors, new = tensors[: len(parts)], tensors[len(parts) :], None
        plain = dtype is None and x.dtype == weight.dtype == factors[0].dtype
        with torch.autocast(x.device.type, enabled=False):
            if plain and not merging_pays(x.numel() // x.shape[-1], weight):
                y = F.linear(x, weight, bias)
                flat = y.view(-1, y.shape[-1])
                for part, low, up in zip(parts, inner, factors[1::2], strict=True):
                    own_rows(flat, part).addmm_(low.reshape(-1, low.shape[-1]), up.t(), alpha=part.scale)
            else:
                x = x if dtype is None else x.to(dtype)
                new = merged(weight, parts, factors).to(x.dtype)
                y = F.linear(x, new, None if bias is None else bias.to(x.dtype))
        ctx.parts, ctx.dtype, ctx.was_cast, ctx.merges = parts, x.dtype, dtype is not None, new is not None
        ctx.save_for_backward(weight, bias, cast_of(new, weight), *tensors)
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        weight, bias, new, *tensors = ctx.saved_tensors
        parts, inner, factors = ctx.parts, tensors[: len(ctx.parts)], tensors[len(ctx.parts) :]
        nothing: list[Tensor | None] = [None] * len(tensors)
        if is_differentiated():
            lows, ups = _beside(parts, weight, bias, inner, factors[1::2], grad, ctx.was_cast)
            nothing[: len(parts)], nothing[len(parts) + 1 :: 2] = lows, ups
            return grad @ weight, None, None, None, None, *nothing
        g = grad.reshape(-1, grad.shape[-1]).to(ctx.dtype)
        for at, (part, low, up) in enumerate(zip(parts, inner, factors[1::2], strict=True)):
            d_up = low.reshape(-1, low.shape[-1]).to(g.dtype).t() @ own_rows(g, part)
            nothing[len(parts) + 2 * at + 1] = d_up.mul_(part.scale).t().to(up.dtype)
        dx = None
        if ctx.needs_input_grad[0]:
            if ctx.merges:
                dx = g @ (merged(weight, parts, factors).to(g.dtype) if new is None else new)
            else:
                dx = g @ weight
                for part, down, up in zip(parts, factors[::2], factors[1::2], strict=True):
                    dx.addmm_(own_rows(g, part) @ up, down, alpha=part.scale)
            dx = dx.view(*grad.shape[:-1], weight.shape[1])
        return dx, None, None, None, None, *nothing


def _beside(parts: tuple[Part, ...], weight: Tensor, bias: Tensor | None, inner: Any, ups: Any, grad: Tensor,
            was_cast: bool) -> tuple[list[Tensor | None], list[Tensor | None]]:  # fmt: skip
    """The gradients of each A x, by which autograd goes on to x, and of each B, for a backward that is differentiated."""

    def run(*tensors: Tensor) -> Tensor:
        y = grad.new_zeros(grad.shape)
        for part, low, up in zip(parts, tensors[: len(parts)], tensors[len(parts) :], strict=True):
            rows = part.rows or (0, len(weight))
            y = y + F.pad(F.linear(low, up * part.scale), (rows[0], len(weight) - rows[1]))
        return y

    found = gradients(run, (*inner, *ups), grad, was_cast)
    return found[: len(parts)], found[len(parts) :]


def frozen_down_linear(
    x: Annotated[Tensor, "... in"],
    weight: Annotated[Tensor, "out in"],
    bias: Annotated[Tensor | None, "out"],
    deltas: list[Any],
) -> Annotated[Tensor, "... out"]:
    """F.linear(x, W + Σ s·B A, b) with A (r, in) that takes no gradient; where W or b takes one, x is kept as ever."""
    if weight.requires_grad or (bias is not None and bias.requires_grad):
        return lowrank_linear(x, weight, bias, deltas)
    dtype = autocast_dtype(x.device.type)
    parts, factors = parts_and_factors(deltas)
    inner = [F.linear(x if dtype is not None else x.to(down.dtype), down) for down in factors[::2]]
    return _FrozenDownLinear.apply(x, weight, bias, parts, dtype, *inner, *factors)  # type: ignore[no-any-return]
