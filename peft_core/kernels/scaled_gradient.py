"""y = x, whose gradient goes on multiplied by a number."""

from typing import Any

import torch
from torch import Tensor


class _ScaledGradient(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, factor: float) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, float], output: Tensor) -> None:
        ctx.factor = inputs[1]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad * ctx.factor, None


def scaled_gradient(x: Tensor, factor: float) -> Tensor:
    """x; the gradient that comes back to it is multiplied by `factor`."""
    return _ScaledGradient.apply(x, factor)  # type: ignore[return-value]
