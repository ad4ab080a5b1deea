from dataclasses import dataclass

from peft_core.method import Method, Plan


@dataclass(frozen=True, kw_only=True)
class BitFit(Method):
    """BitFit: every bias of the model trains, those of patch embedding and final norm included.

    Ben Zaken et al., "BitFit: Simple Parameter-efficient Fine-tuning for Transformer-based Masked Language-models",
    ACL 2022. 102,912 parameters on ViT-B/16 (8,448 a block, 768 each for patch embedding and final norm).
    """

    def install(self, plan: Plan) -> None:
        for module, name in plan.stock_parameters():
            if name.endswith("bias"):
                plan.train(module, name)
