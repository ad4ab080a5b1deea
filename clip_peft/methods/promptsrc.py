import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clip_peft.frozen import Clip, raw_features
from clip_peft.learner import Learner
from clip_peft.parts.context import ContextMethod
from clip_peft.parts.deep_prompts import DeepPrompts
from peft_core.values import Count, NotNegative, Positive, Range


@dataclass(frozen=True, kw_only=True)
class PromptSRC(ContextMethod):
    """PromptSRC: deep prompts of their own in both towers, held near zero-shot CLIP, and averaged over the epochs.

    Khattak et al., "Self-regulating Prompts: Foundational Model Adaptation without Forgetting", ICCV 2023;
    muzairkhattak/PromptSRC. With f̂, t̂ normalised, h_c the mean hand-written feature and f̂_0 the frozen image feature:
    loss = CE + w_t · mean|t̂ − h| + w_i · mean|f̂ − f̂_0| + Σ p_0 (log p_0 − log p) / (B·C), p the softmax of the logits and
    p_0 of the frozen ones. `end_epoch` averages the prompts with weights ∝ exp(−(e − μ)²/2σ²). 46,080 parameters on
    ViT-B-16 at depth 9. Frozen features need the pictures: a cache of image features does not do.

    Args:
        depth: J blocks of each tower.
        context: M text tokens, which take the place of the first M of `init`; its other words stay in the text.
        image_tokens: prompts behind the patches, the first ones before the norm in front of the blocks (`ln_pre`).
        init: a text; None for a random start with nothing else before the name.
        text_weight, image_weight: w_t and w_i.
        mean, deviation: μ and σ, in epochs (base to new: 15 and 1 of 20 epochs).
        template: of the hand-written prompts (see zero_shot).
    """

    depth: Count = 9
    context: Count = 4
    image_tokens: Annotated[int, Range(1, 1024)] = 4
    init: str | None = "a photo of a"
    text_weight: NotNegative = 25.0
    image_weight: NotNegative = 10.0
    mean: NotNegative = 15.0
    deviation: Positive = 1.0
    template: str | Sequence[str] = "ensemble60"
    vit_b16: ClassVar[tuple[tuple[dict[str, Any], int], ...]] = (
        ({"template": "{}."}, 46_080), ({"template": "{}.", "depth": 3}, 15_360),
    )  # fmt: skip

    @classmethod
    def examples(cls) -> Iterable["PromptSRC"]:
        return (cls(depth=2, template="a photo of a {}."),)

    def learner(self, clip: Clip, names: Sequence[str]) -> Learner:
        return _PromptSRC(clip, self, names)


class _PromptSRC(DeepPrompts):
    def __init__(self, clip: Clip, method: PromptSRC, names: Sequence[str]):
        super().__init__(clip, method, names, reference=method.template)
        shape, device = (method.image_tokens, self.image_tower.width), self.context.device
        self.image_prompts = nn.ParameterList(
            [nn.Parameter(torch.randn(shape, device=device) * 0.02) for _ in range(method.depth)]
        )
        # what has been averaged so far goes into checkpoints
        for i, parameter in enumerate(self.parameters()):
            self.register_buffer(f"average_{i}", torch.zeros_like(parameter))

    @torch.no_grad()
    def hand_features(self) -> Tensor:
        """As there: the mean over templates is of the features as the tower gives them."""
        return F.normalize(raw_features(self.hand_passes), dim=-1)

    def of_image(self) -> list[Tensor]:
        return list(self.image_prompts)

    def loss(self, features: Tensor, labels: Tensor, images: Tensor | None = None) -> Tensor:
        frozen = F.normalize(self.frozen_features(images), dim=-1)
        with torch.no_grad():
            teacher = self.clip.compare(frozen, self.hand)
        f, t = F.normalize(features, dim=-1), self.weights()
        logits = self.clip.compare(features, t)
        near = F.kl_div(
            logits.float().log_softmax(-1), teacher.float().log_softmax(-1), reduction="sum", log_target=True
        )  # fmt: skip
        return (
            F.cross_entropy(logits, labels)
            + self.method.text_weight * F.l1_loss(t, self.hand)
            + self.method.image_weight * F.l1_loss(f, frozen)
            + near / logits.numel()
        )

    @torch.no_grad()
    def end_epoch(self, epoch: int, epochs: int) -> None:
        """Add this epoch's prompts with its weight; after the last epoch the prompts become the average."""
        weights = epoch_weights(epochs, self.method.mean, self.method.deviation)
        for i, parameter in enumerate(self.parameters()):
            average: Tensor = getattr(self, f"average_{i}")
            average.add_(parameter, alpha=weights[epoch - 1])
            if epoch == epochs:
                parameter.copy_(average)


def epoch_weights(epochs: int, mean: float, deviation: float) -> list[float]:
    """exp(−(e − μ)²/2σ²) for e = 1 … epochs, with sum 1 (the largest exponent is taken out: no underflow to 0/0)."""
    exponents = [-((epoch - mean) ** 2) / (2 * deviation**2) for epoch in range(1, epochs + 1)]
    weights = [math.exp(exponent - max(exponents)) for exponent in exponents]
    return [weight / sum(weights) for weight in weights]
