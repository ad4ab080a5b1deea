from collections.abc import Sequence
from dataclasses import dataclass

from peft_core.errors import PeftError
from peft_core.method import Method, Plan


@dataclass(frozen=True, kw_only=True)
class BitFit(Method):
    """BitFit: every bias of the model trains, those of patch embedding and final norm included, or those of some roles.

    Ben Zaken et al., "BitFit: Simple Parameter-efficient Fine-tuning for Transformer-based Masked Language-models",
    ACL 2022. 102,912 parameters on ViT-B/16 (8,448 a block, 768 each for patch embedding and final norm).

    Args:
        targets: roles whose biases alone train (the paper's reduced forms); all there are where None.
    """

    targets: Sequence[str] | None = None

    def install(self, plan: Plan) -> None:
        if self.targets is not None:
            for place, _ in plan.places(self.targets):
                if place.bias is None or place.rows is not None:
                    raise PeftError(
                        f"bitfit finds no bias that is {place.role}'s alone at {place.module}: name other targets."
                    )
                plan.train(place.module, place.bias)
            return
        for module, name in plan.stock_parameters():
            if name.endswith("bias"):
                plan.train(module, name)
