from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from clip_peft.frozen import Clip
from clip_peft.learner import Learner, OpenVocabularyMethod, TemplateLearner
from clip_peft.parts.views import AUGMIX, OfViews, Part, Views, surest, tuned
from clip_peft.text.templates import DEFAULT
from peft_core.values import Positive, Range


@dataclass(frozen=True, kw_only=True)
class TPS(OpenVocabularyMethod):
    """TPS: at test time each picture shifts the class features, t′ = t + Δ normalised, Δ (C, E) from zero by one step that lowers
    the entropy of its mean prediction.

    Sui et al., "Just Shift It: Test-Time Prototype Shifting for Zero-Shot Generalization with Vision-Language Models", WACV 2025
    (2403.12952); elaine-sui/TPS. As `tpt`, but the text tower is never run: what is learnt stands behind it. Nothing is kept.

    Args:
        confident: share of the views that is kept, at least one.
        lr: of AdamW (weight decay 0.01, PyTorch's default).
        steps: how many.
        views: V, which scoring and predicting make of a picture: itself and random crops, mirrored or not.
        augmix: mix what was done to a view; published for fine-grained sets, where `fit` sets it.
        template: of the class texts (see zero_shot).
    """

    confident: Part = 0.1
    lr: Positive = 5e-3
    steps: Annotated[int, Range(1, 1000)] = 1
    views: Views = 64
    augmix: bool = False
    template: str | Sequence[str] = DEFAULT
    published: ClassVar[Mapping[str, Mapping[str, Any]]] = AUGMIX
    no_class_weights: ClassVar[str | None] = "each picture shifts them for itself"
    of_pictures: ClassVar[bool] = True
    vit_b16: ClassVar[tuple[tuple[dict[str, Any], int], ...]] = (({}, 0),)

    def learner(self, clip: Clip, names: Sequence[str]) -> Learner:
        return _TPS(clip, self, names)


class _TPS(OfViews, TemplateLearner):
    def logits(self, features: Tensor, weights: Tensor | None = None) -> Tensor:
        """B C of the first views, from B V E."""
        f, method, texts = self.views_of(features), self.method, self.weights()
        kept = surest(self.clip.compare(f, texts), method.confident)

        def shifted(shift: Tensor) -> Tensor:
            return F.normalize(texts + shift, dim=-1)  # B C E

        shift = tuned(torch.zeros_like(texts), shifted, self.clip.compare, f, kept, method.lr, method.steps)
        return self.clip.compare(f[:, :1], shifted(shift))[:, 0]
