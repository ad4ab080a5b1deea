from dataclasses import dataclass

from torch import nn

from peft_core.method import Method
from peft_core.plan import Plan


@dataclass(frozen=True, kw_only=True)
class BitFit(Method):
    """BitFit: every bias of the model trains, those of patch embedding and final norm included.

    Ben Zaken et al., "BitFit: Simple Parameter-efficient Fine-tuning for Transformer-based Masked Language-models",
    ACL 2022. 102,912 parameters on ViT-B/16 (8,448 a block, 768 each for patch embedding and final norm).
    """

    def install(self, plan: Plan) -> None:
        chosen = [path for _, _, path, _ in plan.chosen_blocks(1, 1)]
        outside = self.blocks is None
        inside = [path for paths in plan.anatomy.blocks.values() for path in paths]
        for path, module in plan.model.named_modules():
            in_block = path.startswith(tuple(block + "." for block in inside))
            if "peft" in path.split(".") or isinstance(module, nn.ModuleDict):
                continue
            if path.startswith(tuple(block + "." for block in chosen)) or (outside and not in_block and self._tower(path, plan)):
                names = [n for n, p in module._parameters.items() if p is not None and (n == "bias" or n.endswith("_bias"))]
                plan.train(path, *names)

    def _tower(self, path: str, plan: Plan) -> bool:
        """Outside blocks, a tower's biases are those of its named places."""
        if self.tower is None:
            return True
        return any(place.module == path and place.tower == self.tower for place in plan.anatomy.places)
