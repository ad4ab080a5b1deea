from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from peft_core.grafts.formed import Formed
from peft_core.method import Method, Plan
from peft_core.parts.lowrank import LowRank
from peft_core.parts.ranked import Ranked
from peft_core.values import Widths


@dataclass(frozen=True, kw_only=True)
class HiRA(Ranked):
    """HiRA: W' = W + W ⊙ (s·B A), A (rank, in), B (out, rank): a change of a rank up to rank · rank W.

    Huang et al., "HiRA: Parameter-Efficient Hadamard High-Rank Adaptation for Large Language Models", ICLR 2025. A is
    Kaiming-uniform (a = √5), B zero: identity at step 0; rank 32 and s = 1 as in Hugging Face PEFT (its dropout is not here).
    The gradient of B A is W ⊙ dW: unlike LoRA's it needs the dense dW. It wants a larger learning rate than LoRA (4.5e-3 in
    PEFT's table). Rank 8 on q, v: 294,912 parameters on ViT-B/16.

    Args:
        rank: one rank, or one a block where 0 means absent.
        alpha: s = alpha/rank; 1 where it is None.
        targets: roles or groups.
        rs: rank-stabilised scale.
    """

    rank: Widths = 32
    vit_b16: ClassVar[tuple[tuple[dict[str, Any], int], ...]] = (({"rank": 8}, 294_912),)

    @classmethod
    def examples(cls) -> Iterable[Method]:
        return (cls(rank=2, alpha=20.0, targets=("attn", "mlp")),)

    def install(self, plan: Plan) -> None:
        for place, rank in plan.places(self.targets, self.rank, Proportional):
            plan.change_weight(place, Proportional(plan.stock(place), place.rows, rank, self.scale(rank)))


class Proportional(Formed):
    """W' = W ⊙ (1 + s·B A)."""

    needs_matrix = True

    def __init__(self, weight: Tensor, rows: tuple[int, int] | None, rank: int, scale: float):
        super().__init__(rows)
        pair = LowRank(weight, rows, rank, scale)
        self.A, self.B, self.scale = pair.A, pair.B, scale

    def forward(self, weight: Tensor) -> Tensor:
        return (weight * (1 + self.scale * (self.B @ self.A)).view(weight.shape)).to(weight.dtype)
