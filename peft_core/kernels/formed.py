"""The linear and the convolution under a dense weight change, y = x W'ᵀ + b' with (W', b') = form(W, b, tensors).

Autograd keeps W' and all that the change made on the way, two to three times what the frozen model keeps. Here x's source is
kept, and W and the tensors, which stand in the model anyway. Backward forms W' and b' again, now followed by autograd, and
sends dW' = gᵀ x and db' = Σ g back through the change; dx = g W'.
"""

from collections.abc import Callable, Sequence
from typing import Annotated, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from peft_core.kernels.rebuild import Recipe, autocast_dtype, kept_for, pieces, whole
from peft_core.kernels.sparse import convolve, product
from peft_core.kernels.twice import gradients, is_differentiated

Form = Callable[[Tensor, Tensor | None, Sequence[Tensor]], tuple[Tensor, Tensor | None]]
"""W' and b' of W, b and what the changes hold: it draws nothing, and reads no other tensor that trains."""


def _formed(form: Form, dtype: torch.dtype | None, weight: Tensor, bias: Tensor | None, tensors: Sequence[Tensor]
            ) -> tuple[Tensor, Tensor | None]:  # fmt: skip
    # what autocast casts without a gradient must not stand for what has one
    with torch.autocast(weight.device.type, dtype=dtype, enabled=dtype is not None, cache_enabled=False):
        return form(weight, bias, tensors)


def _run(x: Tensor, weight: Tensor, bias: Tensor | None, geometry: tuple[Any, ...] | None) -> Tensor:
    return F.linear(x, weight, bias) if geometry is None else convolve(x, weight, bias, geometry)


class _Formed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, recipe: Recipe | None, kept: tuple[Tensor, ...],
                form: Form, geometry: tuple[Any, ...] | None, dtype: torch.dtype | None, *tensors: Tensor) -> Tensor:  # fmt: skip
        new, shift = _formed(form, dtype, weight, bias, tensors)
        x = x if dtype is None else x.to(dtype)
        with torch.autocast(x.device.type, enabled=False):
            y = _run(x, new.to(x.dtype), None if shift is None else shift.to(x.dtype), geometry)
        ctx.form, ctx.geometry, ctx.recipe, ctx.kept = form, geometry, recipe, len(kept)
        ctx.dtype, ctx.cast = x.dtype, dtype
        ctx.save_for_backward(*(kept if recipe else (x,)), weight, bias, *tensors)
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        saved, geometry = ctx.saved_tensors, ctx.geometry
        kept, (weight, bias, *tensors) = saved[: ctx.kept], saved[ctx.kept :]
        if is_differentiated():

            def run(x: Tensor, weight: Tensor, bias: Tensor | None, *tensors: Tensor) -> Tensor:
                new, shift = ctx.form(weight, bias, tensors)
                return _run(x, new.to(x.dtype), shift, geometry)

            inputs = (whole(ctx.recipe, kept), weight, bias, *tensors)
            dx, dw, db, *rest = gradients(run, inputs, grad, ctx.cast is not None)
            return dx, dw, db, None, None, None, None, None, *rest
        of_input, *needed = ctx.needs_input_grad[:3] + ctx.needs_input_grad[8:]
        leaves = [
            None if tensor is None else tensor.detach().requires_grad_(needs)
            for tensor, needs in zip((weight, bias, *tensors), needed, strict=True)
        ]
        with torch.enable_grad():
            new, shift = _formed(ctx.form, ctx.cast, leaves[0], leaves[1], leaves[2:])  # type: ignore[arg-type]
        of_shift = shift is not None and shift.requires_grad
        g, value = grad.to(ctx.dtype), new.detach().to(ctx.dtype)
        if geometry is None:
            flat = g.reshape(-1, g.shape[-1])
            dx = (flat @ value).view(*g.shape[:-1], weight.shape[1]) if of_input else None
            inputs = (piece.to(g.dtype) for piece in pieces(ctx.recipe, kept))
            d_new = product(inputs, flat) if new.requires_grad else None
            d_shift = flat.sum(0) if of_shift else None
        else:
            *place, groups = geometry
            x, mask = whole(ctx.recipe, kept).to(g.dtype), (of_input, new.requires_grad, of_shift)
            dx, d_new, d_shift = torch.ops.aten.convolution_backward(
                g, x, value, [len(weight)], *place, False, [0] * (x.dim() - 2), groups, mask
            )
        ends = [(of, d.to(of.dtype)) for of, d in ((new, d_new), (shift, d_shift)) if of is not None and d is not None]
        wanted = [leaf for leaf in leaves if leaf is not None and leaf.requires_grad]
        found = iter(_back(ends, wanted))
        dw, db, *rest = (next(found) if leaf is not None and leaf.requires_grad else None for leaf in leaves)
        return dx, dw, db, None, None, None, None, None, *rest


def _back(ends: list[tuple[Tensor, Tensor]], wanted: list[Tensor]) -> Sequence[Tensor | None]:
    if not ends or not wanted:
        return [None] * len(wanted)
    return torch.autograd.grad([of for of, _ in ends], wanted, [d for _, d in ends], allow_unused=True)


def formed(
    x: Tensor,
    weight: Annotated[Tensor, "out in ..."],
    bias: Annotated[Tensor | None, "out"],
    form: Form,
    tensors: Sequence[Tensor],
    geometry: tuple[Any, ...] | None = None,
) -> Tensor:
    """F.linear(x, *form(W, b, tensors)), or with a geometry (stride, padding, dilation, groups) the convolution."""
    return _Formed.apply(  # type: ignore[no-any-return]
        x, weight, bias, *kept_for(x), form, geometry, autocast_dtype(x.device.type), *tensors
    )
