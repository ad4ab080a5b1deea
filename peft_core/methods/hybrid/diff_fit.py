from collections.abc import Sequence
from dataclasses import dataclass

from peft_core.method import Method, Plan
from peft_core.parts.scaling import OutputScale


@dataclass(frozen=True, kw_only=True)
class DiffFit(Method):
    """DiffFit: biases and norms train, and every residual step becomes x ← x + γ ⊙ F(x), γ (D) starting at 1.

    Xie et al., "DiffFit: Unlocking Transferability of Large Diffusion Models via Simple Parameter-Efficient Fine-Tuning",
    ICCV 2023. γ acts on the last linear of F, W' = γ W and b' = γ b, so it merges. On the SD 1.5 UNet 343,684 biases,
    100,160 norm weights and 37,440 γ. The paper's learning rate is ten times that of pre-training.

    Args:
        scaled: roles whose outputs get a γ; those that end a residual step (proj, cross_proj, fc2) where None.
            `attn cross_attn` gives one to each q, k, v and proj (99,840 on SD 1.5).
    """

    scaled: Sequence[str] | None = None

    def install(self, plan: Plan) -> None:
        known = plan.anatomy.roles()
        scaled = [r for r in ("proj", "cross_proj", "fc2") if r in known] if self.scaled is None else self.scaled
        for place, _ in plan.places(scaled):
            plan.change_weight(place, OutputScale(plan.stock(place), place.rows))
        norms = {place.module for place, _ in plan.places([role for role in known if "norm" in role])}
        for module, name in plan.stock_parameters():
            if name.endswith("bias") or (module in norms and name == "weight"):
                plan.train(module, name)
