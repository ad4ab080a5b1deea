from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from peft_core.errors import PeftError
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
        known = plan.anatomy.roles()
        default = [role for role in ROLES if role in known or (role == "qkv" and "q" in known)]
        for place, _ in plan.places(default if self.targets is None else self.targets):
            if not place.called and place.bias is None:
                if self.targets is None:
                    continue
                raise PeftError(
                    f"ssf cannot shift {place.module}, whose bias lies outside it: leave {place.role} out of targets."
                )
            plan.change_weight(place, ScaleShift(plan.stock(place), place.rows, self.init_std))
