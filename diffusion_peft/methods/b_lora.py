from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

from peft_core.errors import PeftError
from peft_core.method import Method, Plan
from peft_core.parts.lowrank import LowRank
from peft_core.parts.ranked import Ranked
from peft_core.values import Widths


@dataclass(frozen=True, kw_only=True)
class BLoRA(Ranked):
    """B-LoRA: LoRA on the two of SDXL's transformers that decide on content and on style, to learn one picture.

    Frenkel et al., "Implicit Style-Content Separation using B-LoRA", ECCV 2024: W' = W + s·B A on q, k, v and the output
    projection of self and cross attention in the first two transformers of the first up block. Trained together on a picture
    called "A [v]", each works without the other afterwards (`export --half`, `merge --how b_lora`, `sample --how b_lora`). Rank
    64 is the authors': 28,180,480 parameters on SDXL. A is Kaiming-uniform and B zero as lora has them.

    Args:
        rank: as of lora. alpha, targets, rs: as of lora.
        content, style: paths of the two transformers, those of SDXL by default.
    """

    rank: Widths = 64
    content: str = "up_blocks.0.attentions.0"
    style: str = "up_blocks.0.attentions.1"

    suits: ClassVar[tuple[str, ...]] = ("diffusers UNet",)

    @classmethod
    def examples(cls) -> Iterable[Method]:
        return (cls(rank=2, alpha=3.0, content="down_blocks.0.attentions.0", style="mid_block.attentions.0"),)

    def install(self, plan: Plan) -> None:
        halves = {path: 0 for path in (self.content, self.style)}
        for place, rank in plan.places(self.targets, self.rank, LowRank):
            for path in halves:
                if place.module.startswith(f"{path}."):
                    halves[path] += 1
                    plan.change_weight(place, LowRank(plan.stock(place), place.rows, rank, self.scale(rank)))
        missing = [path for path, count in halves.items() if not count]
        if missing:
            raise PeftError(
                f"b_lora finds no layer under {missing[0]}: this is no SDXL, or its targets and blocks leave it out."
            )
