"""What the low-rank weight changes (LoRA, DoRA, LoHa, LoKr) have in common."""

from collections.abc import Sequence
from dataclasses import dataclass

from peft_core.method import Method
from peft_core.values import Positive, Widths


@dataclass(frozen=True, kw_only=True)
class Ranked(Method):
    """A change of a given rank, weighed by s = alpha/rank (alpha/√rank with `rs`, 1 without alpha).

    Args:
        rank: one rank, or one a block where 0 means absent.
        alpha: float; the scale does not depend on the rank where it is None.
        targets: roles, e.g. `q k v qkv proj fc1 fc2`, on UNets also `proj_io conv time`, or groups `attn cross_attn mlp`.
        rs: rank-stabilised scale (Kalajdzievski, "A Rank Stabilization Scaling Factor for Fine-Tuning with LoRA", 2023).
    """

    rank: Widths = 8
    alpha: Positive | None = None
    targets: Sequence[str] | None = None
    rs: bool = False

    def scale(self, rank: int) -> float:
        if self.alpha is None:
            return 1.0
        return self.alpha / (rank**0.5 if self.rs else rank)
