from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clip_peft.frozen import Clip
from clip_peft.learner import Learner, OpenVocabularyMethod
from clip_peft.parts.deep_prompts import CoupledPrompts
from clip_peft.parts.feature_adapter import FeatureAdapter
from peft_core.values import Count, NotNegative, Share


@dataclass(frozen=True, kw_only=True)
class CoPrompt(OpenVocabularyMethod):
    """CoPrompt: MaPLe's coupled prompts and an adapter behind each tower, held near what the frozen model says of another view
    and another text: f' = α_i A_i(f) + (1 − α_i) f, t' = α_t A_t(t) + (1 − α_t) t, A(x) = relu(W₂ relu(W₁ x)),
    loss = CE(s · f̂'·t̂') + λ (1 − mean_c cos(t'_c, h_c)) + λ (1 − mean cos(f', f_0)).

    Roy and Etemad, "Consistency-guided Prompt Learning for Vision-Language Models", ICLR 2024; ShuvenduRoy/CoPrompt. f_0 is the
    frozen tower's feature of a second augmentation of the picture (images B 2 3 H W; of the same one where there is one), h_c the
    frozen feature of a text of the class, of which one is drawn at each step, the same for all classes: there GPT-3's
    descriptions, here one of OpenAI's 80 templates, so this is less to learn from. W₁ (E/r, E) and W₂ (E, E/r) have no biases.
    3,817,216 parameters on ViT-B-16 at depth 9. Frozen features need the pictures: a cache of image features does not do.

    Args:
        depth: J blocks of each tower.
        context: M, of which the first ones start from `init`; its other words stay in the text.
        init: a text; None for a random start with nothing else before the name.
        weight: λ.
        image_ratio, text_ratio: α_i and α_t.
        reduction: r.
        template: of the frozen texts, several of them.
    """

    depth: Count = 9
    context: Count = 2
    init: str | None = "a photo of a"
    weight: NotNegative = 1.0
    image_ratio: Share = 0.1
    text_ratio: Share = 0.2
    reduction: Count = 4
    template: str | Sequence[str] = "ensemble"
    no_class_weights: ClassVar[str | None] = "it changes image features before they are compared"
    second_view: ClassVar[bool] = True
    vit_b16: ClassVar[tuple[tuple[dict[str, Any], int], ...]] = (({"template": "{}."}, 3_817_216),)

    @classmethod
    def examples(cls) -> Iterable["CoPrompt"]:
        return (cls(depth=2, template=("a photo of a {}.", "a bad photo of a {}.")),)

    def learner(self, clip: Clip, names: Sequence[str]) -> Learner:
        return _CoPrompt(clip, self, names)


class _CoPrompt(CoupledPrompts):
    def __init__(self, clip: Clip, method: CoPrompt, names: Sequence[str]):
        super().__init__(clip, method, names, reference=method.template)
        self.of_pictures = FeatureAdapter(clip, method.reduction, method.image_ratio)
        self.of_texts = FeatureAdapter(clip, method.reduction, method.text_ratio)

    @torch.no_grad()
    def hand_features(self) -> Tensor:
        """T C E, one for each template."""
        return F.normalize(torch.stack([text_pass() for text_pass in self.hand_passes]), dim=-1)

    def text_parameters(self) -> list[nn.Parameter]:
        return [*super().text_parameters(), *self.of_texts.parameters()]

    def raw_texts(self) -> Tensor:
        return self.of_texts(super().raw_texts())

    def encode(self, images: Tensor) -> Tensor:
        return super().encode(images[:, 0] if images.dim() == 5 else images)

    def logits(self, features: Tensor, weights: Tensor | None = None) -> Tensor:
        return super().logits(self.of_pictures(features), weights)

    def loss(self, features: Tensor, labels: Tensor, images: Tensor | None = None) -> Tensor:
        other = images[:, 1] if images is not None and images.dim() == 5 else images
        frozen = F.normalize(self.frozen_features(other), dim=-1)
        hand = self.hand[torch.randint(len(self.hand_passes), ())]
        f, t = F.normalize(self.of_pictures(features), dim=-1), self.weights()
        apart = (1 - (t * hand).sum(-1)).mean() + (1 - (f * frozen).sum(-1)).mean()
        return F.cross_entropy(self.clip.compare(f, t), labels) + self.method.weight * apart
