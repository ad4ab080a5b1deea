"""A linear behind a GELU: it keeps what the GELU reads and computes the GELU again in the backward pass."""

from typing import Annotated, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from peft_core.kernels.twice import gradients, is_differentiated, transforms_are_active


def gelu_linear(
    x: Annotated[Tensor, "... in"], weight: Annotated[Tensor, "out in"], bias: Annotated[Tensor, "out"]
) -> Annotated[Tensor, "... out"]:
    """gelu(x) Wᵀ + b."""
    if transforms_are_active() or torch.compiler.is_compiling() or torch.is_autocast_enabled(x.device.type):
        return _plain(x, weight, bias)
    return _GeluLinear.apply(x, weight, bias)


def _plain(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return F.linear(F.gelu(x), weight, bias)


class _GeluLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight, bias)
        return _plain(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, bias = ctx.saved_tensors
        if is_differentiated():
            return tuple(gradients(_plain, (x, weight, bias), grad, was_cast=False))
        flat, wanted = grad.reshape(-1, grad.shape[-1]), ctx.needs_input_grad
        d_x = torch.ops.aten.gelu_backward(grad @ weight, x) if wanted[0] else None
        d_weight = flat.t() @ F.gelu(x).reshape(-1, x.shape[-1]) if wanted[1] else None
        return d_x, d_weight, flat.sum(0) if wanted[2] else None
