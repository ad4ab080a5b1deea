import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from peft_core.method import Method, Plan
from peft_core.parts.factors import new_parameter
from peft_core.parts.lowrank import LowRank
from peft_core.parts.ranked import Ranked
from peft_core.values import Rate


class Mixed(LowRank):
    """W' = W + s·B M A; M (r, r) mixes what A gives, and starts as A does."""

    def __init__(self, weight: Tensor, rows: tuple[int, int] | None, rank: int, scale: float, dropout: float = 0.0):
        super().__init__(weight, rows, rank, scale, dropout)
        self.M = new_parameter(weight, rank, rank)
        nn.init.kaiming_uniform_(self.M, a=math.sqrt(5))

    def factors(self) -> tuple[Tensor, Tensor]:
        with torch.autocast(self.A.device.type, enabled=False):
            return self.M @ self.A, self.B


@dataclass(frozen=True, kw_only=True)
class MoSLoRA(Ranked):
    """MoSLoRA: W' = W + s·B M A with a learnt mixer M (rank, rank) between A (rank, in) and B (out, rank).

    Wu et al., "Mixture-of-Subspaces in Low-Rank Adaptation", EMNLP 2024. As in wutaiqiang/MoSLoRA A and M are Kaiming-uniform
    (a = √5), B is zero: identity at step 0. Rank 8 on q, v: 296,448 parameters on ViT-B/16.

    Args:
        rank: one rank, or one a block where 0 means absent.
        alpha: s = alpha/rank; 1 where it is None.
        dropout: on the change's own input; above 0 training takes the plain path.
        targets: roles or groups.
        rs: rank-stabilised scale.
    """

    dropout: Rate = 0.0
    vit_b16: ClassVar[tuple[tuple[dict[str, Any], int], ...]] = (({"rank": 8}, 296_448),)

    @classmethod
    def examples(cls) -> Iterable[Method]:
        return (cls(rank=2, alpha=3.0, targets=("attn", "mlp")),)

    def install(self, plan: Plan) -> None:
        for place, rank in plan.places(self.targets, self.rank, Mixed):
            plan.change_weight(place, Mixed(plan.stock(place), place.rows, rank, self.scale(rank), self.dropout))
