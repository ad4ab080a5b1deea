from dataclasses import dataclass
from typing import ClassVar

from peft_core.method import Method
from peft_core.plan import Plan


@dataclass(frozen=True, kw_only=True)
class Full(Method):
    """Full fine-tuning: every weight of the model trains.

    The stock weights are overwritten without a copy, so it cannot be disabled, scaled or removed; merging only makes it
    final. The upper baseline of every PEFT paper, 85,798,656 parameters on ViT-B/16.
    """

    keeps_originals: ClassVar[bool] = False

    def install(self, plan: Plan) -> None:
        chosen = [path + "." for _, _, path, _ in plan.chosen_blocks(1, 1)]
        for key, _ in plan.model.named_parameters():
            everywhere = self.blocks is None and self.tower is None
            if "peft" not in key.split(".") and (everywhere or key.startswith(tuple(chosen))):
                plan.trained.append(key)
