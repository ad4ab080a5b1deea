from collections.abc import Iterable
from dataclasses import dataclass

from peft_core.method import Method, Plan
from peft_core.parts.lowrank import LowRank
from peft_core.parts.ranked import Ranked
from peft_core.values import Rate


@dataclass(frozen=True, kw_only=True)
class LoRA(Ranked):
    """LoRA: W' = W + s·B A with A (rank, in), B (out, rank), s = alpha/rank (alpha/√rank with `rs`, 1 without alpha).

    Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", ICLR 2022; `rs`: Kalajdzievski, "A Rank Stabilization
    Scaling Factor for Fine-Tuning with LoRA", 2023. A is Kaiming-uniform (a = √5), B is zero, as in microsoft/LoRA.
    Rank 8 on q, v (the paper's choice and the default) inserts 294,912 parameters on ViT-B/16. A convolution's weight counts
    as (out, in·kh·kw): A is a convolution to `rank` channels, B a 1 × 1 one. On the SD 1.5 UNet rank 4 inserts 797,184 on
    attention, 4,009,984 with the feed-forward, proj_io and conv.

    Args:
        rank: one rank, or one a block where 0 means absent.
        alpha: float; the scale does not depend on the rank where it is None.
        dropout: on the change's own input; above 0 training takes the plain path, y = W x + s·B A drop(x).
        targets: roles, e.g. `q k v qkv proj fc1 fc2`, or groups `attn cross_attn mlp`.
        rs: rank-stabilised scale.
    """

    dropout: Rate = 0.0

    @classmethod
    def examples(cls) -> Iterable[Method]:
        return cls(rank=2), cls(rank=2, alpha=3.0, rs=True, targets=("attn", "mlp"))

    def install(self, plan: Plan) -> None:
        for place, rank in plan.places(self.targets, self.rank, LowRank):
            plan.change_weight(place, LowRank(plan.stock(place), place.rows, rank, self.scale(rank), self.dropout))
