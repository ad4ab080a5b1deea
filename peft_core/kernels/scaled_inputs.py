"""The fast linear of scaled inputs: y = W (l ⊙ x) + b, which keeps x's source alone.

W diag(l) is formed in place of l ⊙ x, there and in backward: dx = g W diag(l), dl = Σ x ⊙ (g W) = Σ x ⊙ dx / l. Where the
division loses it (near l = 0) those columns of g W are computed again.
"""

from typing import Annotated, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from peft_core.kernels.column_sums import column_products
from peft_core.kernels.rebuild import Recipe, autocast_dtype, keep, kept_for, kept_of, pieces, whole
from peft_core.kernels.twice import gradients, is_differentiated


class _ScaledInputs(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, scale: Tensor, weak: Tensor | None,
                recipe: Recipe | None, kept: tuple[Tensor, ...], dtype: torch.dtype | None) -> Tensor:  # fmt: skip
        x = x if dtype is None else x.to(dtype)
        with torch.autocast(x.device.type, enabled=False):
            y = F.linear(x, (weight * scale).to(x.dtype), None if bias is None else bias.to(x.dtype))
        keep(ctx, x, recipe, kept, dtype, weight, bias, scale, weak)
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        kept, (weight, bias, scale, weak) = kept_of(ctx)
        if is_differentiated():
            dx, _, db, dl = gradients(
                lambda x, w, b, s: F.linear(x, (w * s).to(x.dtype), b),
                (whole(ctx.recipe, kept), weight, bias, scale), grad, ctx.was_cast,
            )  # fmt: skip
            return dx, None, db, dl, None, None, None, None
        g = grad.reshape(-1, grad.shape[-1]).to(ctx.dtype)
        dx = g @ (weight * scale).to(g.dtype)
        found, lost, start = [], [], 0
        for x in pieces(ctx.recipe, kept):
            rows, start = slice(start, start + len(x)), start + len(x)
            found.append(column_products(dx[rows], x.to(g.dtype)))
            if weak is not None:
                lost.append(column_products(g[rows] @ weight[:, weak].to(g.dtype), x[:, weak].to(g.dtype)))
        dl = torch.stack(found).sum(0).to(scale.dtype) / scale
        if weak is not None:
            dl = dl.index_copy(0, weak, torch.stack(lost).sum(0).to(scale.dtype))
        db = g.sum(0) if ctx.needs_input_grad[2] else None
        return dx.view(*grad.shape[:-1], weight.shape[1]), None, db, dl, None, None, None, None


def scaled_inputs_linear(
    x: Annotated[Tensor, "... in"],
    weight: Annotated[Tensor, "out in"],
    bias: Annotated[Tensor | None, "out"],
    scale: Annotated[Tensor, "in"],
    weak: Annotated[Tensor | None, "weak"],
) -> Annotated[Tensor, "... out"]:
    """(l ⊙ x) Wᵀ + b of a frozen W; weak: inputs whose l is near 0."""
    return _ScaledInputs.apply(x, weight, bias, scale, weak, *kept_for(x), autocast_dtype(x.device.type))  # type: ignore
