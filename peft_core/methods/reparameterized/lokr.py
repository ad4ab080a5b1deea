import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from peft_core.errors import PeftError
from peft_core.grafts.graft import Delta
from peft_core.parts.factors import add_scaled, is_spatial, new_parameter, rows_of, split_dimension, tucker
from peft_core.parts.ranked import Ranked
from peft_core.plan import Plan

Split = tuple[tuple[int, int], tuple[int, int]]
"""out = l·k and in = m·n, as ((l, k), (m, n))."""


class Kronecker(Delta):
    """W' = W + s·w1 ⊗ w2 with out = l·k, in = m·n: w1 (l, m), w2 (k, n, kh, kw), each whole or the product of
    w_a (…, r) and w_b (r, …); w2 also by a Tucker core t2 (r, r, kh, kw). The last factor of w2 is zero: W' = W at step 0."""

    commutes = True

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


@dataclass(frozen=True, kw_only=True)
class LoKr(Ranked):
    """LoKr: W' = W + s·w1 ⊗ w2, w1 (l, m) whole and w2 (k, n) of the given rank, with out = l·k and in = m·n.

    Edalati et al., "KronA: Parameter Efficient Tuning with Kronecker Adapter", 2022, as LyCORIS (Yeh et al., ICLR 2024) has
    it, whose shapes and initial values these are: w1, w2_a Kaiming-uniform (a = √5), w2_b = 0; w2 is whole where rank ≥
    max(k, n)/2; s = 1 where both are whole. Rank 4, factor −1 on attention: 106,496 parameters on the SD 1.5 UNet.

    Args:
        rank: one rank, or one a block where 0 means absent.
        alpha: s = alpha/rank; 1 where it is None.
        targets: roles or groups.
        rs: rank-stabilised scale.
        factor: size of w1, where it divides out and in; else the nearest split below; −1: as square as can be.
        decompose_both: w1 of the given rank too, where that is smaller.
        full_matrix: w2 whole.
        tucker: convolutions larger than 1 × 1 by a Tucker core of rank × rank × kh × kw (PEFT's `use_effective_conv2d`).
    """

    factor: int = -1
    decompose_both: bool = False
    full_matrix: bool = False
    tucker: bool = False

    def install(self, plan: Plan) -> None:
        if self.factor < 1 and self.factor != -1:
            raise PeftError(f"lokr got factor {self.factor}: it must be 1 or more, or -1 for the most even split.")
        for place, rank in plan.places(self.targets, self.rank):
            plan.change_weight(place, self.change(plan.stock(place), place.rows, rank))

    def change(self, weight: Tensor, rows: tuple[int, int] | None, rank: int) -> Kronecker:
        split = split_dimension(rows_of(weight, rows), self.factor), split_dimension(weight.shape[1], self.factor)
        (rows_1, k), (m, n) = split
        whole1 = self.full_matrix or not self.decompose_both or rank >= max(rows_1, m) / 2
        whole2 = self.full_matrix or rank >= max(k, n) / 2
        return Kronecker(weight, rows, rank, self.scale(rank), split, whole1, whole2, self.tucker)
