from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

from peft_core.method import Method
from peft_core.parts.selection.pruned_biases import PrunedBiases


@dataclass(frozen=True, kw_only=True)
class SBitFit(PrunedBiases):
    """S-BitFit: BitFit whose bias vectors are pruned whole while they train.

    Lawton et al., "Neural Architecture Search for Parameter-Efficient Fine-tuning of Large Pre-trained Language Models", Findings
    of ACL 2023, the structured form: a vector's score is the mean of its entries' |g · Δb|, and as many vectors stay as the
    budget holds whole. No code was released; budget and schedule are built from the idea (see `u_bitfit`). 102,912 parameters on
    ViT-B/16 while it trains.
    """

    whole: ClassVar[bool] = True
    vit_b16: ClassVar[tuple[tuple[dict[str, Any], int], ...]] = (({}, 102_912),)

    @classmethod
    def examples(cls) -> Iterable[Method]:
        return (cls(),)
