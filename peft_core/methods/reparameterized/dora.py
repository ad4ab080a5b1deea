from collections.abc import Iterable
from dataclasses import dataclass

from peft_core.method import Method, Plan
from peft_core.parts.decomposed import Decomposed
from peft_core.parts.ranked import Ranked


@dataclass(frozen=True, kw_only=True)
class DoRA(Ranked):
    """DoRA: W' = m ⊙ V/‖V‖ with V = W + s·B A; magnitude m (out), A (rank, in), B (out, rank).

    Liu et al., "DoRA: Weight-Decomposed Low-Rank Adaptation", ICML 2024. The norm is that of each output's weights (as in
    Hugging Face PEFT, and LyCORIS with `wd_on_out`) and is held constant in backward (section 4.3 of the paper). m starts
    as ‖W‖, A is Kaiming-uniform, B zero. Rank 4 on attention: 897,024 parameters on the SD 1.5 UNet.

    Args:
        rank: one rank, or one a block where 0 means absent.
        alpha: s = alpha/rank; 1 where it is None.
        targets: roles or groups.
        rs: rank-stabilised scale.
    """

    @classmethod
    def examples(cls) -> Iterable[Method]:
        return (cls(rank=2, alpha=3.0, targets=("attn", "mlp")),)

    def install(self, plan: Plan) -> None:
        for place, rank in plan.places(self.targets, self.rank, Decomposed):
            change = Decomposed(plan.stock(place), place.rows, rank, self.scale(rank), plan.current(place))
            plan.change_weight(place, change)
