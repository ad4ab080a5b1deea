from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from clip_peft.frozen import Clip
from clip_peft.learner import Learner, OpenVocabularyMethod, TemplateLearner
from clip_peft.parts.feature_adapter import bottleneck, mixed
from clip_peft.text.templates import DEFAULT
from peft_core.values import Count, Share


@dataclass(frozen=True, kw_only=True)
class CLIPAdapter(OpenVocabularyMethod):
    """CLIP-Adapter: f' = α · relu(W₂ relu(W₁ f)) + (1 − α) · f on image features; W₁ (E/r, E), W₂ (E, E/r), no biases.

    Gao et al., "CLIP-Adapter: Better Vision-Language Models with Feature Adapters", IJCV 2023; gaopengcuhk/CLIP-Adapter,
    whose code has the image adapter only. f is not normalised, f' is. 131,072 parameters on ViT-B-16.

    Args:
        reduction: r.
        ratio: α.
        template: of the class texts (see zero_shot).
    """

    reduction: Count = 4
    ratio: Share = 0.2
    template: str | Sequence[str] = DEFAULT
    no_class_weights: ClassVar[str | None] = "it changes image features before they are compared"
    vit_b16: ClassVar[tuple[tuple[dict[str, Any], int], ...]] = (({}, 131_072),)

    def learner(self, clip: Clip, names: Sequence[str]) -> Learner:
        return _CLIPAdapter(clip, self, names)


class _CLIPAdapter(TemplateLearner):
    def __init__(self, clip: Clip, method: CLIPAdapter, names: Sequence[str]):
        super().__init__(clip, method, names)
        self.down, self.up = bottleneck(clip, method.reduction)

    def logits(self, features: Tensor, weights: Tensor | None = None) -> Tensor:
        return super().logits(mixed(features, self.down, self.up, self.method.ratio), weights)
