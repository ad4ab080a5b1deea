from dataclasses import dataclass
from typing import ClassVar

from peft_core.method import Method, Plan


@dataclass(frozen=True, kw_only=True)
class Full(Method):
    """Full fine-tuning: every weight of the model trains.

    The stock weights are overwritten without a copy, so it cannot be disabled, scaled or removed; merging only makes it
    final. The upper baseline of every PEFT paper, 85,798,656 parameters on ViT-B/16.
    """

    keeps_originals: ClassVar[bool] = False
    moves_statistics: ClassVar[bool] = True

    def install(self, plan: Plan) -> None:
        for module, name in plan.stock_parameters():
            plan.train(module, name)
