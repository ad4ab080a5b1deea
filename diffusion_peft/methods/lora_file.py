from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from diffusion_peft.files.layers import build
from peft_core.anatomies import Place
from peft_core.errors import PeftError
from peft_core.method import Method, Plan


@dataclass(frozen=True, kw_only=True)
class LoRAFile(Method):
    """What a LoRA file changes, module by module: the method that `diffusion_peft.formats.import_adapter` installs.

    Each module has its own kind (lora, dora, loha, lokr, full, ia3, oft, glora), rank and scale, as in the file; values start
    as those methods start, and the import puts the file's in. Any module with a weight can be named, norms, conv_in and
    conv_out too.

    Args:
        layers: module path -> kind, rank and scale, with the shapes that some kinds need (`Layer.settings`).
    """

    layers: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    needs: ClassVar[tuple[str, ...]] = ("file",)

    @classmethod
    def examples(cls) -> Iterable[Method]:
        layers = {
            "conv_in": {"kind": "lora", "rank": 2, "scale": 1.5},
            "mid_block.resnets.0.conv1": {"kind": "loha", "rank": 2, "scale": 0.5, "cores": True},
            "mid_block.attentions.0.transformer_blocks.0.attn1.to_q": {"kind": "dora", "rank": 3, "scale": 1.0},
            "mid_block.attentions.0.transformer_blocks.0.ff.net.2": {
                "kind": "lokr", "rank": 2, "scale": 2.0, "whole1": True, "whole2": False, "cores": False, "outer": [4, 8],
            },
        }  # fmt: skip
        return (cls(layers=layers),)

    def install(self, plan: Plan) -> None:
        if not self.layers:
            raise PeftError("lora_file got no layers: import_adapter reads them from a file.")
        known = dict(plan.model.named_modules())
        if missing := [path for path in self.layers if path not in known]:
            raise PeftError(f"lora_file is for another model: this {plan.anatomy.family} has no {missing[0]}.")
        places = {place.module: place for place in plan.anatomy.places if place.rows is None}
        for path, settings in self.layers.items():
            place = places.get(path, Place("layer", path))
            plan.change_weight(place, build(plan.stock(place), plan.current(place), **settings))
