"""The fast linear under a scale and a shift: y = γ ⊙ (W x + b) + β, which keeps y alone for backward.

W' = γ W and b' = γ b + β run at the frozen linear's speed. With z = W x + b, backward needs dγ = Σ g ⊙ z, and z = (y − β)/γ:
dγ = (Σ g ⊙ y − β Σ g)/γ, dβ = Σ g, dx = g W'. Near γ = 0 the division loses z, so there x is kept and z computed again.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from peft_core.grafts.graft import Delta
from peft_core.grafts.weight_changes import changed_bias, changed_weight
from peft_core.kernels.rebuild import autocast_dtype

SMALL = 1e-3


class _ScaleShiftLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, gamma: Tensor, beta: Tensor,
                dtype: torch.dtype | None, keep_input: bool) -> Tensor:  # fmt: skip
        with torch.autocast(x.device.type, enabled=False):
            inner = x if dtype is None else x.to(dtype)
            shift = beta if bias is None else torch.addcmul(beta, bias, gamma)
            y = F.linear(inner, _scaled(weight, gamma, inner.dtype), shift.to(inner.dtype))
        ctx.keep_input = keep_input
        ctx.save_for_backward(inner if keep_input else y, weight, bias, gamma, beta)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        kept, weight, bias, gamma, beta = ctx.saved_tensors
        g = grad.reshape(-1, grad.shape[-1])
        dx = dw = db = None
        if ctx.needs_input_grad[0]:
            dx = (g.to(kept.dtype) @ _scaled(weight, gamma, kept.dtype)).view(*grad.shape[:-1], -1)
        d_beta = g.sum(0, dtype=torch.float32).to(beta.dtype)
        if ctx.keep_input:
            z = F.linear(kept, weight.to(kept.dtype), None if bias is None else bias.to(kept.dtype))
            d_gamma = _column_dots(g, z.reshape(g.shape)).to(gamma.dtype)
        else:
            d_gamma = (_column_dots(g, kept.reshape(g.shape)).to(gamma.dtype) - beta * d_beta) / gamma
        if ctx.needs_input_grad[2]:
            db = d_beta * gamma
        return dx, dw, db, d_gamma, d_beta, None, None


def _column_dots(g: Tensor, y: Tensor) -> Tensor:
    """Σ over rows of g ⊙ y, summed in float32."""
    return (g * y).sum(0, dtype=torch.float32)


def _scaled(weight: Tensor, gamma: Tensor, dtype: torch.dtype) -> Tensor:
    return (weight * gamma.unsqueeze(1)).to(dtype)


def scale_shift_linear(x: Tensor, weight: Tensor, bias: Tensor | None, deltas: list["ScaleShift"]) -> Tensor:
    """F.linear(x, γ W, γ b + β): x (…, in), W (out, in), γ and β (out)."""
    only = deltas[0]
    if len(deltas) > 1 or only.rows is not None or only.factor != 1.0 or weight.requires_grad:
        return F.linear(x, changed_weight(weight, deltas), changed_bias(bias, deltas, weight.dtype))
    return _ScaleShiftLinear.apply(  # type: ignore[no-any-return]
        x, weight, bias, only.gamma, only.beta, autocast_dtype(x.device.type), only.has_small_gamma()
    )


class ScaleShift(Delta):
    """W' = γ W, b' = γ b + β, row by row: y' = γ ⊙ y + β for any module that ends in its weight and bias."""

    def __init__(self, weight: Tensor, rows: tuple[int, int] | None, init_std: float):
        super().__init__(rows)
        out = weight.shape[0] if rows is None else rows[1] - rows[0]
        options: dict[str, Any] = dict(device=weight.device, dtype=torch.promote_types(weight.dtype, torch.float32))
        self.gamma = nn.Parameter(torch.empty(out, **options).normal_(1.0, init_std))
        self.beta = nn.Parameter(torch.empty(out, **options).normal_(0.0, init_std))
        self._checked: tuple[int, bool] | None = None

    def forward(self, weight: Tensor) -> Tensor:
        return (weight * self.gamma.view(-1, *[1] * (weight.dim() - 1))).to(weight.dtype)

    def bias(self, bias: Tensor | None) -> Tensor:
        return self.beta if bias is None else torch.addcmul(self.beta, bias, self.gamma).to(bias.dtype)

    def has_small_gamma(self) -> bool:
        """Looked at once after each optimiser step: the answer costs a device synchronisation."""
        if torch.compiler.is_compiling():
            return True
        if self._checked is None or self._checked[0] != self.gamma._version:
            self._checked = (self.gamma._version, bool((self.gamma.detach().abs() < SMALL).any()))
        return self._checked[1]

    kernel = staticmethod(scale_shift_linear)
