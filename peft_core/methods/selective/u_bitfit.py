from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

from peft_core.method import Method
from peft_core.parts.selection.pruned_biases import PrunedBiases


@dataclass(frozen=True, kw_only=True)
class UBitFit(PrunedBiases):
    """U-BitFit: BitFit whose single entries are pruned while they train; which biases stay is found by training.

    Lawton et al., "Neural Architecture Search for Parameter-Efficient Fine-tuning of Large Pre-trained Language Models", Findings
    of ACL 2023: what is pruned is what costs the loss least by its first-order change |g · Δb|. No code was released and its
    budgets and schedule could not be confirmed: those here (half of the biases, four rounds over the first half of the training)
    are built from the idea. While it trains every bias is stored, 102,912 on ViT-B/16, and `finish` leaves the budget.
    """

    vit_b16: ClassVar[tuple[tuple[dict[str, Any], int], ...]] = (({}, 102_912),)

    @classmethod
    def examples(cls) -> Iterable[Method]:
        return (cls(),)
