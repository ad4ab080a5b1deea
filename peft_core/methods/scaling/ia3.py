from collections.abc import Sequence
from dataclasses import dataclass

from peft_core.errors import PeftError
from peft_core.method import Method, Plan
from peft_core.parts.scaling import InputScale, OutputScale


@dataclass(frozen=True, kw_only=True)
class IA3(Method):
    """(IA)³: k ← l_k ⊙ k, v ← l_v ⊙ v, and W₂ (l_ff ⊙ h) in the feed-forward; vectors l start at 1.

    Liu et al., "Few-Shot Parameter-Efficient Fine-Tuning is Better and Cheaper than In-Context Learning", NeurIPS 2022.
    Outputs of k and v of self and cross attention (biases included, as in Hugging Face PEFT) and inputs of fc2. Merges.
    55,296 parameters on ViT-B/16, 99,840 on the SD 1.5 UNet.

    Args:
        targets: roles whose outputs are scaled; k, v, cross_k and cross_v where None.
        feedforward: roles whose inputs are scaled.
    """

    targets: Sequence[str] | None = None
    feedforward: Sequence[str] = ("fc2",)

    def install(self, plan: Plan) -> None:
        known = plan.anatomy.roles()
        outputs = [r for r in ("k", "v", "cross_k", "cross_v") if r in known] if self.targets is None else self.targets
        for place, _ in plan.places(outputs, change=OutputScale) if outputs else ():
            if not place.called and place.bias is None:
                raise PeftError(
                    f"ia3 cannot scale {place.role} at {place.module}, whose bias lies outside it: leave it out of targets."
                )
            plan.change_weight(place, OutputScale(plan.stock(place), place.rows))
        for place, _ in plan.places(self.feedforward, change=InputScale) if self.feedforward else ():
            plan.change_weight(place, InputScale(plan.stock(place), place.rows))
