from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar

from torch import Tensor

from peft_core.method import Method, Plan
from peft_core.parts.kronecker import Kronecker, Kroneckers, split_of
from peft_core.parts.ranked import Ranked
from peft_core.values import Count, Range


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
        groups: so many products w1 ⊗ w2 are summed up, each as above (KARST: Chen et al., "KARST: Multi-Kernel Kronecker
            Adaptation with Re-Scaling Transmission for Visual Classification", ICASSP 2025; preset karst).
    """

    factor: Annotated[int, Range(-1)] = -1
    decompose_both: bool = False
    full_matrix: bool = False
    tucker: bool = False
    groups: Count = 1
    vit_b16: ClassVar[tuple[tuple[dict[str, Any], int], ...]] = (
        ({"factor": 8, "groups": 8, "targets": ("qkv", "proj", "fc1", "fc2")}, 1_204_224),
    )

    @classmethod
    def examples(cls) -> Iterable[Method]:
        small = cls(rank=2, alpha=3.0, targets=("attn", "mlp"), tucker=True, decompose_both=True)
        return small, replace(small, groups=3)

    def install(self, plan: Plan) -> None:
        for place, rank in plan.places(self.targets, self.rank, Kronecker):
            plan.change_weight(place, self.change(plan.stock(place), place.rows, rank))

    def change(self, weight: Tensor, rows: tuple[int, int] | None, rank: int) -> Kronecker:
        split = split_of(weight, rows, self.factor)
        (rows_1, k), (m, n) = split
        whole1 = self.full_matrix or not self.decompose_both or rank >= max(rows_1, m) / 2
        whole2 = self.full_matrix or rank >= max(k, n) / 2
        settings = weight, rows, rank, self.scale(rank), split, whole1, whole2, self.tucker
        return Kronecker(*settings) if self.groups == 1 else Kroneckers(self.groups, *settings)
