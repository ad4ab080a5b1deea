"""What is made again for the backward in place of being kept: a dense weight change's W', and what an input is mapped to.

`formed`: the linear and the convolution under a dense weight change, y = x W'ᵀ + b' with (W', b') = form(W, b, tensors).

Autograd keeps W' and all that the change made on the way, two to three times what the frozen model keeps. Here x's source is
kept, and W and the tensors, which stand in the model anyway. Backward forms W' and b' again, now followed by autograd, and
sends dW' = gᵀ x and db' = Σ g back through the change; dx = g W'.

`mapped`: make(x, tensors), before a frozen layer that keeps nothing of it.
"""

from collections.abc import Callable, Sequence
from typing import Annotated, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from peft_core.kernels.rebuild import Recipe, autocast_dtype, keep, kept_for, kept_of, pieces, whole
from peft_core.kernels.sparse import convolve, product
from peft_core.kernels.twice import gradients, is_differentiated

Form = Callable[[Tensor, Tensor | None, Sequence[Tensor]], tuple[Tensor, Tensor | None]]
"""W' and b' of W, b and what the changes hold: it draws nothing, and reads no other tensor that trains."""


def _as_then(dtype: torch.dtype | None, device: torch.device) -> torch.autocast:
    """Autocast as it was in forward; what it casts without a gradient must not stand for what has one."""
    return torch.autocast(device.type, dtype=dtype, enabled=dtype is not None, cache_enabled=False)


def _leaves(tensors: Sequence[Tensor | None], needed: Sequence[bool]) -> list[Any]:
    pairs = zip(tensors, needed, strict=True)
    return [None if tensor is None else tensor.detach().requires_grad_(needs) for tensor, needs in pairs]


def _back(ends: Sequence[tuple[Tensor, Tensor]], leaves: Sequence[Tensor | None]) -> list[Tensor | None]:
    """The gradients of the leaves that need one, from those of the ends."""
    wanted = [leaf for leaf in leaves if leaf is not None and leaf.requires_grad]
    if not ends or not wanted:
        return [None] * len(leaves)
    of, grads = zip(*ends, strict=True)
    found = iter(torch.autograd.grad(of, wanted, grads, allow_unused=True))
    return [next(found) if leaf is not None and leaf.requires_grad else None for leaf in leaves]


def _run(x: Tensor, weight: Tensor, bias: Tensor | None, geometry: tuple[Any, ...] | None) -> Tensor:
    return F.linear(x, weight, bias) if geometry is None else convolve(x, weight, bias, geometry)


class _Formed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, recipe: Recipe | None, kept: tuple[Tensor, ...],
                form: Form, geometry: tuple[Any, ...] | None, dtype: torch.dtype | None, *tensors: Tensor) -> Tensor:  # fmt: skip
        with _as_then(dtype, weight.device):
            new, shift = form(weight, bias, tensors)
        x = x if dtype is None else x.to(dtype)
        with torch.autocast(x.device.type, enabled=False):
            y = _run(x, new.to(x.dtype), None if shift is None else shift.to(x.dtype), geometry)
        ctx.form, ctx.geometry, ctx.cast = form, geometry, dtype
        keep(ctx, x, recipe, kept, dtype, weight, bias, *tensors)
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        geometry = ctx.geometry
        kept, (weight, bias, *tensors) = kept_of(ctx)
        if is_differentiated():

            def run(x: Tensor, weight: Tensor, bias: Tensor | None, *tensors: Tensor) -> Tensor:
                new, shift = ctx.form(weight, bias, tensors)
                return _run(x, new.to(x.dtype), shift, geometry)

            inputs = (whole(ctx.recipe, kept), weight, bias, *tensors)
            dx, dw, db, *rest = gradients(run, inputs, grad, ctx.cast is not None)
            return dx, dw, db, None, None, None, None, None, *rest
        of_input, *needed = ctx.needs_input_grad[:3] + ctx.needs_input_grad[8:]
        leaves = _leaves((weight, bias, *tensors), needed)
        with torch.enable_grad(), _as_then(ctx.cast, weight.device):
            new, shift = ctx.form(leaves[0], leaves[1], leaves[2:])
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
        dw, db, *rest = _back(ends, leaves)
        return dx, dw, db, None, None, None, None, None, *rest


class _Mapped(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, recipe: Recipe | None, kept: tuple[Tensor, ...], make: Callable[..., Tensor],
                back: Callable[..., tuple[Tensor | None, ...]] | None, dtype: torch.dtype | None,
                *tensors: Tensor) -> Tensor:  # fmt: skip
        ctx.make, ctx.back, ctx.recipe, ctx.kept, ctx.dtype = make, back, recipe, len(kept), dtype
        ctx.save_for_backward(*kept, *tensors)
        with _as_then(dtype, x.device):
            return make(x, *tensors)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        saved = ctx.saved_tensors  # unpacked once: checkpointing allows no more
        inputs = (whole(ctx.recipe, saved[: ctx.kept]), *saved[ctx.kept :])
        if is_differentiated():
            dx, *rest = gradients(ctx.make, inputs, grad, ctx.dtype is not None)
        elif ctx.back is not None:
            with _as_then(ctx.dtype, grad.device):
                dx, *rest = ctx.back(grad, *inputs)
        else:
            leaves = _leaves(inputs, ctx.needs_input_grad[:1] + ctx.needs_input_grad[6:])
            with torch.enable_grad(), _as_then(ctx.dtype, grad.device):
                y = ctx.make(*leaves)
            dx, *rest = _back([(y, grad)], leaves)
        return dx, None, None, None, None, None, *rest


def mapped(
    x: Tensor,
    make: Callable[..., Tensor],
    *tensors: Tensor,
    back: Callable[..., tuple[Tensor | None, ...]] | None = None,
) -> Tensor:
    """make(x, *tensors), which reads no other tensor that trains and draws nothing; x's source is kept, and the tensors. Where
    running it again costs more than its gradients `back(grad, x, *tensors)` gives these."""
    if torch.compiler.is_compiling() or not torch.is_grad_enabled():
        return make(x, *tensors)
    return _Mapped.apply(  # type: ignore[no-any-return]
        x, *kept_for(x), make, back, autocast_dtype(x.device.type), *tensors
    )


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
