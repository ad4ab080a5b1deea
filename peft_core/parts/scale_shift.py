"""The fast linear under a scale and a shift: y = γ ⊙ (W x + b) + β, which keeps y alone for backward.

W' = γ W and b' = γ b + β run at the frozen linear's speed. With z = W x + b, backward needs dγ = Σ g ⊙ z, and z = (y − β)/γ:
dγ = (Σ g ⊙ y − β Σ g)/γ, dβ = Σ g, dx = g W'. Where the division loses z (near γ = 0, or in 16 bits beside a large shift) x
is kept too, and those rows of z are computed again.
"""

from typing import Annotated, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from peft_core.grafts.graft import Delta
from peft_core.grafts.weight_changes import changed_bias, changed_weight
from peft_core.kernels.column_sums import column_products, column_sums
from peft_core.kernels.rebuild import Recipe, autocast_dtype, kept_for, whole
from peft_core.kernels.twice import spread_of, weak_rows


class _ScaleShiftLinear(torch.autograd.Function):
    # every step of backward can be differentiated again
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, gamma: Tensor, beta: Tensor,
                dtype: torch.dtype | None, weak: Tensor | None, recipe: Recipe | None,
                kept: tuple[Tensor, ...]) -> Tensor:  # fmt: skip
        with torch.autocast(x.device.type, enabled=False):
            inner = x if dtype is None else x.to(dtype)
            shift = beta if bias is None else torch.addcmul(beta, bias, gamma)
            y = F.linear(inner, _scaled(weight, gamma, inner.dtype), shift.to(inner.dtype))
        kept = () if weak is None else kept if recipe is not None else (inner,)
        ctx.recipe = recipe
        ctx.save_for_backward(y, weight, bias, gamma, beta, weak, *kept)
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        y, weight, bias, gamma, beta, weak, *kept = ctx.saved_tensors
        g = grad.reshape(-1, grad.shape[-1])
        dx = db = None
        if ctx.needs_input_grad[0]:
            dx = (g.to(y.dtype) @ _scaled(weight, gamma, y.dtype)).view(*grad.shape[:-1], weight.shape[1])
        d_beta, along = (each.to(gamma.dtype) for each in column_sums(g, y.view(g.shape)))
        d_gamma = (along - beta * d_beta) / gamma
        if weak is not None:
            x = whole(ctx.recipe, tuple(kept))
            x = x.reshape(-1, x.shape[-1]).to(y.dtype)
            z = F.linear(x, weight[weak].to(y.dtype), None if bias is None else bias[weak].to(y.dtype))
            d_gamma = d_gamma.index_copy(0, weak, column_products(g[:, weak], z).to(gamma.dtype))
        if ctx.needs_input_grad[2]:
            db = d_beta * gamma
        return dx, None, db, d_gamma, d_beta, None, None, None, None


def _scaled(weight: Tensor, gamma: Tensor, dtype: torch.dtype) -> Tensor:
    return (weight * gamma.unsqueeze(1)).to(dtype)


def scale_shift_linear(
    x: Annotated[Tensor, "... in"],
    weight: Annotated[Tensor, "out in"],
    bias: Annotated[Tensor | None, "out"],
    deltas: list["ScaleShift"],
) -> Annotated[Tensor, "... out"]:
    """F.linear(x, γ W, γ b + β): x (…, in), W (out, in), γ and β (out)."""
    only = deltas[0]
    if (
        len(deltas) > 1
        or only.rows is not None
        or only.factor != 1.0
        or not only.keeps_output
        or weight.requires_grad
        or torch.compiler.is_compiling()
    ):
        return F.linear(x, changed_weight(weight, deltas), changed_bias(bias, deltas, weight))
    weak = only.weak(x, weight, bias, autocast_dtype(x.device.type) or x.dtype)
    return scaled_and_shifted(x, weight, bias, only.gamma, only.beta, weak)


def scaled_and_shifted(
    x: Annotated[Tensor, "... in"],
    weight: Annotated[Tensor, "out in"],
    bias: Annotated[Tensor | None, "out"],
    gamma: Annotated[Tensor, "out"],
    beta: Annotated[Tensor, "out"],
    weak: Annotated[Tensor | None, "weak"],
) -> Annotated[Tensor, "... out"]:
    """γ ⊙ (x Wᵀ + b) + β of a frozen W; weak: outputs of which z is computed again."""
    recipe, kept = (None, ()) if weak is None else kept_for(x)
    dtype = autocast_dtype(x.device.type)
    return _ScaleShiftLinear.apply(x, weight, bias, gamma, beta, dtype, weak, recipe, kept)  # type: ignore[no-any-return]


class ScaleShift(Delta):
    """W' = γ W, b' = γ b + β, row by row: y' = γ ⊙ y + β for any module that ends in its weight and bias."""

    keeps_output = True
    """False where the model may write over what the module gives."""

    def __init__(self, weight: Tensor, rows: tuple[int, int] | None, init_std: float):
        super().__init__(rows)
        out = weight.shape[0] if rows is None else rows[1] - rows[0]
        options: dict[str, Any] = dict(device=weight.device, dtype=torch.promote_types(weight.dtype, torch.float32))
        self.gamma = nn.Parameter(torch.empty(out, **options).normal_(1.0, init_std))
        self.beta = nn.Parameter(torch.empty(out, **options).normal_(0.0, init_std))

    def forward(self, weight: Tensor) -> Tensor:
        return (weight * self.gamma.view(-1, *[1] * (weight.dim() - 1))).to(weight.dtype)

    def bias(self, bias: Tensor | None) -> Tensor:
        return self.beta if bias is None else torch.addcmul(self.beta, bias, self.gamma).to(bias.dtype)

    @torch.no_grad()
    def weak(self, x: Tensor, weight: Tensor, bias: Tensor | None, dtype: torch.dtype) -> Tensor | None:
        """Rows whose z is computed again."""

        def look() -> Tensor | None:
            shift = self.beta if bias is None else torch.addcmul(self.beta, bias, self.gamma)
            return weak_rows(shift, self.gamma, dtype, lambda: spread_of(x, weight) * self.gamma.abs())

        return self.once_a_step((self.gamma, self.beta), (dtype, x.device), look)

    kernel = staticmethod(scale_shift_linear)
