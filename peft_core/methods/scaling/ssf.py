from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from peft_core.method import Method, Plan
from peft_core.parts.scale_shift import ScaleShift
from peft_core.values import NotNegative

ROLES = ("patch_embed", "norm1", "qkv", "proj", "norm2", "fc1", "fc2", "norm", "merge")


@dataclass(frozen=True, kw_only=True)
class SSF(Method):
    """SSF: y ← γ ⊙ y + β, γ and β (out), after patch embedding, norms and linears (before the activation).

    Lian et al., "Scaling & Shifting Your Features: A New Baseline for Efficient Model Tuning", NeurIPS 2022. Computed as
    W' = γ W, b' = γ b + β, so it merges where the layer has a bias, and on the output of norms that have none.
    γ ~ N(1, init_std), β ~ N(0, init_std), 0.02 in dongzelian/SSF: not identity at step 0 unless init_std = 0. 205,824
    parameters on ViT-B/16.

    Args:
        init_std: standard deviation of both.
        targets: roles; all of the above where None, but for EVA's fused qkv, whose bias stands outside the linear.
    """

    init_std: NotNegative = 0.02
    targets: Sequence[str] | None = None
    identity: ClassVar[bool] = False

    def install(self, plan: Plan) -> None:
        for place in plan.biased(self.targets, ROLES):
            change = ScaleShift(plan.stock(place), place.rows, self.init_std)
            change.keeps_output = place.role != "patch_embed"  # positions may be added to it in place
            plan.change_weight(place, change)
