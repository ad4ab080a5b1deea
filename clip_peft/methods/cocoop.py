from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from clip_peft.frozen import Clip
from clip_peft.learner import Learner
from clip_peft.parts.conditional import ConditionalContext
from clip_peft.parts.context import ContextMethod, start_context
from peft_core.values import Count


@dataclass(frozen=True, kw_only=True)
class CoCoOp(ContextMethod):
    """CoCoOp: image i has the context v + π(f_i), π(f) = W₂ relu(W₁ f + b₁) + b₂ added to all M tokens; logits by image.

    Zhou et al., "Conditional Prompt Learning for Vision-Language Models", CVPR 2022; KaiyangZhou/CoOp. f is normalised,
    W₁ (E/16, E), W₂ (D, E/16). All images of a batch go through the text tower together (there: one by one).
    35,360 parameters on ViT-B-16.

    Args:
        context: M; where None, the number of tokens of `init`, or 4.
        init: a text whose token embeddings v starts from; None for N(0, 0.02²).
        reduction: E / hidden width of π.
    """

    context: Count | None = None
    init: str | None = "a photo of a"
    reduction: Count = 16
    no_class_weights: ClassVar[str | None] = "it compares each picture with texts of its own"
    of_pictures: ClassVar[bool] = True
    vit_b16: ClassVar[tuple[tuple[dict[str, Any], int], ...]] = (({}, 35_360),)

    @classmethod
    def examples(cls) -> Iterable["CoCoOp"]:
        return (cls(reduction=1),)

    def learner(self, clip: Clip, names: Sequence[str]) -> Learner:
        return ConditionalContext(clip, self, names, start_context(clip, self.name, self.context, self.init))
