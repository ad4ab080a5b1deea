from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

from peft_core.anatomies import Place
from peft_core.method import Method, Plan
from peft_core.parts.lowrank import LowRank
from peft_core.parts.selection.heads_and_channels import HeadsAndChannels
from peft_core.values import Positive, Rate


@dataclass(frozen=True, kw_only=True)
class LoRAPrune(HeadsAndChannels):
    """LoRAPrune: LoRA on attention and MLP while their least important heads and channels go: W' = m (W + s·B A).

    Zhang et al., "LoRAPrune: Structured Pruning Meets Low-Rank Parameter-Efficient Fine-Tuning", Findings of ACL 2024. A is
    Kaiming-uniform (a = √5), B zero: identity at step 0, s = alpha/rank. How heads and channels are weighed and go, ranks and
    rates are those of aim-uofa/LoRAPrune (4da5272: half of them, rank 8, alpha 16, dropout 0.05, a round every 10 steps;
    there lr 1e-4, batches of 128, 2 passes over 25,000 texts). There the last round lies just below the
    ratio, so that 5 of 12 heads go where 6 should; here one more closes the ramp. Biases of what goes are zero, too (LLaMA has
    none). Merged, the model holds zeros, which `parts.selection.cutting` takes out of a timm ViT: `vision_peft merge` writes the
    small model. 1,327,104 parameters on ViT-B/16, most of which go with their heads and channels.
    """

    alpha: Positive | None = 16.0
    dropout: Rate = 0.05
    vit_b16: ClassVar[tuple[tuple[dict[str, Any], int], ...]] = (({}, 1_327_104),)

    @classmethod
    def examples(cls) -> Iterable[Method]:
        return (cls(rank=2, every=1, ratio=0.4, spare_ends=False, dropout=0.0),)

    def change(self, plan: Plan, place: Place, rank: int) -> LowRank:
        scale = 1.0 if self.alpha is None else self.alpha / rank
        return LowRank(plan.stock(place), place.rows, rank, scale, self.dropout)
