"""A bottleneck whose two matrices are sums of Kronecker products (Compacter); all bottlenecks share the small left factors."""

import math
from typing import Any

import torch
from torch import Tensor, nn

from peft_core.errors import PeftError, nearest
from peft_core.grafts.graft import match
from peft_core.grafts.shared import Reference
from peft_core.parts.bottleneck import ACTIVATIONS


def kronecker_sum(left: Tensor, right: Tensor) -> Tensor:
    """Σ_i left_i ⊗ right_i of (n, a, b) and (n, c, d): (a·c, b·d)."""
    return torch.einsum("iab,icd->acbd", left, right).reshape(left.shape[1] * right.shape[1], -1)


class HypercomplexLinear(nn.Module):
    """y = x Σ_i A_i ⊗ (s_i t_i) + b: A (n, n, n) shared, s (n, in/n, r), t (n, r, out/n), Xavier-uniform with gain √2."""

    def __init__(self, inner: int, out: int, rule: Reference, rank: int, options: dict[str, Any]) -> None:
        super().__init__()
        terms = len(rule())
        if inner % terms or out % terms:
            raise PeftError(f"{terms} Kronecker terms do not divide a layer from {inner} to {out} features.")
        self.rule = rule
        self.s = nn.Parameter(torch.empty(terms, inner // terms, rank, **options))
        self.t = nn.Parameter(torch.empty(terms, rank, out // terms, **options))
        self.bias = nn.Parameter(torch.zeros(out, **options))
        for factor in (*self.s, *self.t):
            nn.init.xavier_uniform_(factor, gain=math.sqrt(2))

    def forward(self, x: Tensor) -> Tensor:
        return x @ kronecker_sum(self.rule(), self.s @ self.t).to(x.dtype) + self.bias.to(x.dtype)


class HypercomplexBottleneck(nn.Module):
    """Up(act(Down x)); with `zero` the last factor of Up starts at zero: no change at step 0."""

    def __init__(self, dim: int, width: int, rule: Reference, *, rank: int, activation: str, zero: bool,
                 options: dict[str, Any]) -> None:  # fmt: skip
        super().__init__()
        if activation not in ACTIVATIONS:
            raise PeftError(
                f'unknown activation "{activation}"{nearest(activation, ACTIVATIONS)} (known: {", ".join(ACTIVATIONS)}).'
            )
        self.down = HypercomplexLinear(dim, width, rule, rank, options)
        self.up = HypercomplexLinear(width, dim, rule, rank, options)
        self.activation = activation
        if zero:
            nn.init.zeros_(self.up.t)

    def forward(self, x: Tensor) -> Tensor:
        return self.up(ACTIVATIONS[self.activation](self.down(match(x, self.down.bias))))
