from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from clip_peft.frozen import Clip
from clip_peft.learner import Learner
from clip_peft.parts.context import ContextLearner, ContextMethod, start_context
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
        return _CoCoOp(clip, self, names, start_context(clip, self.name, self.context, self.init))


class _CoCoOp(ContextLearner):
    def __init__(self, clip: Clip, method: CoCoOp, names: Sequence[str], context: Tensor):
        super().__init__(clip, method, names, context)
        features, device = clip.tower.features, context.device
        hidden = max(1, features // method.reduction)
        self.meta_net = nn.Sequential(
            nn.Linear(features, hidden, device=device), nn.ReLU(), nn.Linear(hidden, clip.tower.width, device=device)
        )

    def class_features(self) -> Tensor:
        """Those of the context alone, which stand for no image."""
        return F.normalize(self.text_pass(self.context), dim=-1)

    def logits(self, features: Tensor, weights: Tensor | None = None) -> Tensor:
        f = F.normalize(features, dim=-1)
        shift = self.meta_net(f.to(self.context.dtype))
        texts = F.normalize(self.text_pass((self.context + shift[:, None])[:, None]), dim=-1)  # B C E
        return self.clip.compare(features[:, None], texts)[:, 0]
