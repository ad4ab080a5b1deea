from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from clip_peft.frozen import Clip
from clip_peft.learner import Learner
from clip_peft.parts.context import ContextMethod, start_context
from clip_peft.parts.tuned_prompt import TunedPrompt
from clip_peft.parts.views import AUGMIX, Part, Views
from peft_core.values import Count, Positive, Range


@dataclass(frozen=True, kw_only=True)
class TPT(ContextMethod):
    """TPT: at test time each picture gets a prompt of its own, by one step that lowers the entropy of its mean prediction.

    Shu et al., "Test-Time Prompt Tuning for Zero-Shot Generalization in Vision-Language Models", NeurIPS 2022; azshue/TPT.
    Images are views B V 3 H W (there 63 augmented ones and, first, the picture). Of each picture's views the share
    `confident` with the lowest entropy is kept, H(mean softmax) of these is lowered by AdamW steps on the context, and the
    first view is named with the result. The contexts of a batch go through the text tower together. Nothing is kept.

    Args:
        context: M; where None, the number of tokens of `init`, or 4.
        init: a text whose token embeddings the context starts from.
        confident: share of the views that is kept, at least one.
        lr: of AdamW (weight decay 0.01, PyTorch's default).
        steps: how many.
        views: V, which scoring and predicting make of a picture: itself and random crops, mirrored or not.
        augmix: mix what was done to a view; published for fine-grained sets, where `fit` sets it.
    """

    context: Count | None = None
    init: str | None = "a photo of a"
    confident: Part = 0.1
    lr: Positive = 5e-3
    steps: Annotated[int, Range(1, 1000)] = 1
    views: Views = 64
    augmix: bool = False
    published: ClassVar[Mapping[str, Mapping[str, Any]]] = AUGMIX
    no_class_weights: ClassVar[str | None] = "it compares each picture with texts of its own"
    of_pictures: ClassVar[bool] = True
    vit_b16: ClassVar[tuple[tuple[dict[str, Any], int], ...]] = (({}, 0),)

    def learner(self, clip: Clip, names: Sequence[str]) -> Learner:
        return TunedPrompt(clip, self, names, start_context(clip, self.name, self.context, self.init))
