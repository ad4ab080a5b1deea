"""Weight changes that LoRA files hold besides those of the methods here: whole differences, scales, turns, GLoRA, and a
magnitude over any change."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from peft_core.grafts.formed import Formed
from peft_core.grafts.graft import Delta
from peft_core.parts.factors import add_scaled, new_parameter

Along = Literal["outputs", "inputs"]
"""Whose weights a norm or a scale goes over: those of each output (rows of W) or of each input (its columns)."""


class Difference(Formed):
    """W' = W + C, b' = b + c: a change written whole (LyCORIS' `full` and `norm`)."""

    def __init__(self, weight: Tensor, shifts: bool) -> None:
        super().__init__()
        self.C = nn.Parameter(torch.zeros_like(new_parameter(weight, *weight.shape)))
        self.c = nn.Parameter(torch.zeros_like(new_parameter(weight, weight.shape[0]))) if shifts else None

    def forward(self, weight: Tensor) -> Tensor:
        return add_scaled(weight, self.C, 1.0)

    def bias(self, bias: Tensor | None) -> Tensor | None:
        if self.c is None:
            return bias
        return self.c if bias is None else (bias + self.c).to(bias.dtype)


class Scales(Formed):
    """W' = W ⊙ (1 + w), w over the outputs (out) or over the inputs (in); the bias stays (LyCORIS' `ia3`)."""

    along: Along

    def __init__(self, weight: Tensor, along: Along) -> None:
        super().__init__()
        self.along = along
        self.w = nn.Parameter(torch.zeros_like(new_parameter(weight, weight.shape[0 if along == "outputs" else 1])))

    def forward(self, weight: Tensor) -> Tensor:
        return (weight * (1 + spread(self.w, weight.dim(), self.along))).to(weight.dtype)


class Turn(Formed):
    """W' = s ⊙ Rᵀ W, R block-diagonal over the outputs with blocks (I + Q)(I − Q)⁻¹, Q = P − Pᵀ.

    P (blocks, b, b), s (out) or none (LyCORIS' `diag-oft`, kohya's OFT).
    """

    def __init__(self, weight: Tensor, size: int, rescaled: bool) -> None:
        super().__init__()
        self.P = nn.Parameter(torch.zeros_like(new_parameter(weight, weight.shape[0] // size, size, size)))
        self.s = nn.Parameter(torch.ones_like(new_parameter(weight, weight.shape[0]))) if rescaled else None

    def forward(self, weight: Tensor) -> Tensor:
        q = self.P - self.P.transpose(1, 2)
        eye = torch.eye(q.shape[-1], device=q.device, dtype=q.dtype)
        r = torch.linalg.solve(eye - q, eye + q, left=False)
        turned = torch.einsum("knm,kn...->km...", r, weight.unflatten(0, r.shape[:2]).to(r.dtype)).flatten(0, 1)
        return (turned if self.s is None else turned * spread(self.s, weight.dim(), "outputs")).to(weight.dtype)


class Generalised(Formed):
    """W' = W + s (W a1 a2 + b1 b2), a1 (in, r), a2 (r, in), b1 (out, r), b2 (r, in·kh·kw): GLoRA.

    Chavan et al., "One-for-All: Generalized LoRA for Parameter-Efficient Fine-tuning", 2023, the two terms LyCORIS has of it.
    """

    a1: nn.Parameter
    a2: nn.Parameter
    b1: nn.Parameter
    b2: nn.Parameter

    def __init__(self, weight: Tensor, rank: int, scale: float) -> None:
        super().__init__()
        out, wide = weight.shape[:2]
        shapes = {"a1": (wide, rank), "a2": (rank, wide), "b1": (out, rank), "b2": (rank, weight[0].numel())}
        for name, shape in shapes.items():
            setattr(self, name, nn.Parameter(torch.zeros_like(new_parameter(weight, *shape))))
        self.scale = scale

    def forward(self, weight: Tensor) -> Tensor:
        mixed = torch.einsum("oi...,ij->oj...", weight.to(self.a1.dtype), self.a1 @ self.a2)
        return add_scaled(weight, mixed + (self.b1 @ self.b2).view(weight.shape), self.scale)


class Normed(Formed):
    """W' = m ⊙ V / ‖V‖ with V what another change makes of W; m and norms over each output's weights, or over each input's.

    Liu et al., "DoRA: Weight-Decomposed Low-Rank Adaptation", ICML 2024, whose magnitude LyCORIS puts over LoHa and LoKr too
    and, with `wd_on_output=False` (until December 2024 always), over the inputs.
    """

    along: Along

    def __init__(self, weight: Tensor, change: Delta, along: Along) -> None:
        super().__init__()
        self.change, self.along = change, along
        self.magnitude = nn.Parameter(norms(weight.to(new_parameter(weight, 0).dtype), along))

    def forward(self, weight: Tensor) -> Tensor:
        v = self.change(weight.to(self.magnitude.dtype))
        return (v * spread(self.magnitude / norms(v, self.along), v.dim(), self.along)).to(weight.dtype)

    def bias(self, bias: Tensor | None) -> Tensor | None:
        return self.change.bias(bias)


def norms(weight: Tensor, along: Along) -> Tensor:
    """‖·‖₂ of each output's weights, (out), or of each input's, (in); never 0."""
    rows = weight if along == "outputs" else weight.transpose(0, 1)
    return rows.flatten(1).norm(dim=1).clamp_min(torch.finfo(weight.dtype).tiny)


def spread(vector: Tensor, dims: int, along: Along) -> Tensor:
    """A vector over outputs or inputs, as it multiplies a weight of so many dimensions."""
    return vector.view(-1, *[1] * (dims - 1)) if along == "outputs" else vector.view(1, -1, *[1] * (dims - 2))
