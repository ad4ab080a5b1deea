from collections.abc import Iterable
from dataclasses import dataclass

from peft_core.method import Method, Plan
from peft_core.parts.hadamard import Hadamard
from peft_core.parts.ranked import Ranked


@dataclass(frozen=True, kw_only=True)
class LoHa(Ranked):
    """LoHa: W' = W + s·(w1_a w1_b) ⊙ (w2_a w2_b), of a rank up to rank².

    Hyeon-Woo et al., "FedPara: Low-Rank Hadamard Product for Communication-Efficient Federated Learning", ICLR 2022, as
    LyCORIS (Yeh et al., ICLR 2024) has it, whose initial values these are: w1_a ~ N(0, 0.1²), w1_b, w2_b ~ N(0, 1),
    w2_a = 0. Rank 4 on attention: 1,594,368 parameters on the SD 1.5 UNet.

    Args:
        rank: one rank, or one a block where 0 means absent.
        alpha: s = alpha/rank; 1 where it is None.
        targets: roles or groups.
        rs: rank-stabilised scale.
        tucker: convolutions larger than 1 × 1 by a Tucker core of rank × rank × kh × kw (PEFT's `use_effective_conv2d`).
    """

    tucker: bool = False

    @classmethod
    def examples(cls) -> Iterable[Method]:
        return (cls(rank=2, alpha=3.0, targets=("attn", "mlp"), tucker=True),)

    def install(self, plan: Plan) -> None:
        for place, rank in plan.places(self.targets, self.rank, Hadamard):
            plan.change_weight(place, Hadamard(plan.stock(place), place.rows, rank, self.scale(rank), self.tucker))
