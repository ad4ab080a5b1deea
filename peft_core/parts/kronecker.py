"""The weight change of LoKr: a Kronecker product."""

import math

import torch
from torch import Tensor, nn

from peft_core.grafts.graft import Delta
from peft_core.parts.factors import add_scaled, is_spatial, new_parameter, tucker

Split = tuple[tuple[int, int], tuple[int, int]]
"""out = l·k and in = m·n, as ((l, k), (m, n))."""


class Kronecker(Delta):
    """W' = W + s·w1 ⊗ w2 with out = l·k, in = m·n: w1 (l, m), w2 (k, n, kh, kw), each whole or the product of
    w_a (…, r) and w_b (r, …); w2 also by a Tucker core t2 (r, r, kh, kw). The last factor of w2 is zero: W' = W at step 0."""

    commutes = True
    needs_matrix = True

    def __init__(self, weight: Tensor, rows: tuple[int, int] | None, rank: int, scale: float, split: Split,
                 whole1: bool, whole2: bool, cores: bool):  # fmt: skip
        super().__init__(rows)
        (rows_1, k), (m, n) = split
        self.inner = (k, n, *weight.shape[2:])
        self.w1 = self.w1_a = self.w1_b = self.w2 = self.w2_a = self.w2_b = self.t2 = None
        if whole1:
            self.w1 = new_parameter(weight, rows_1, m)
        else:
            self.w1_a, self.w1_b = new_parameter(weight, rows_1, rank), new_parameter(weight, rank, m)
        if whole2:
            self.w2 = new_parameter(weight, *self.inner)
        elif cores and is_spatial(weight):
            self.t2 = new_parameter(weight, rank, rank, *weight.shape[2:])
            self.w2_a, self.w2_b = new_parameter(weight, rank, k), new_parameter(weight, rank, n)
        else:
            self.w2_a, self.w2_b = (
                new_parameter(weight, k, rank),
                new_parameter(weight, rank, math.prod(self.inner[1:])),
            )
        for parameter in (self.w1, self.w1_a, self.w1_b, self.w2_a, self.t2):
            if parameter is not None:
                nn.init.kaiming_uniform_(parameter, a=math.sqrt(5))
        nn.init.zeros_(self.w2 if self.w2_b is None else self.w2_b)  # type: ignore[arg-type]
        self.scale = 1.0 if self.w1 is not None and self.w2 is not None else scale

    def forward(self, weight: Tensor) -> Tensor:
        w1 = self.w1 if self.w1 is not None else self.w1_a @ self.w1_b  # type: ignore[operator]
        if self.w2 is not None:
            w2 = self.w2
        elif self.t2 is not None:
            w2 = tucker(self.t2, self.w2_a, self.w2_b)  # type: ignore[arg-type]
        else:
            w2 = (self.w2_a @ self.w2_b).view(self.inner)  # type: ignore[operator]
        return add_scaled(weight, torch.kron(w1.reshape(*w1.shape, *[1] * (w2.dim() - 2)), w2.contiguous()), self.scale)
