from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from clip_peft.frozen import Clip
from clip_peft.learner import Learner, OpenVocabularyMethod, TemplateLearner
from clip_peft.parts.views import OfViews, Part, Views
from clip_peft.text.templates import DEFAULT
from peft_core.values import NotNegative, Positive, Range


@dataclass(frozen=True, kw_only=True)
class MTA(OpenVocabularyMethod):
    """MTA: the class texts are compared with the mode m of a picture's views rather than with the picture; no gradient.

    Zanella and Ben Ayed, "On the Test-Time Zero-Shot Generalization of Vision-Language Models: Do We Really Need Prompt
    Learning?", CVPR 2024; MaxZanella/MTA. Views f_i have bandwidths h_i² = half the mean squared distance to the nearest share
    `near` of the others, kernels K_i = exp(−‖f_i − m‖² / 2 h_i²), and inlierness scores y from 1/V, m from the picture itself.
    In turn, up to `rounds` times: y = softmax((K + λ_q S y) / λ_y), S = P Pᵀ of the views' softmax P (up to `rounds` times), and
    m = Σ y_i K_i f_i, normalised (likewise).

    Args:
        smooth: λ_y.
        agreement: λ_q.
        near: share of the other views that a bandwidth is made of, one at least.
        rounds: at most so many.
        views: V, which scoring and predicting make of a picture: itself and random crops, mirrored or not.
        template: of the class texts (see zero_shot).
    """

    smooth: Positive = 0.2
    agreement: NotNegative = 4.0
    near: Part = 0.3
    rounds: Annotated[int, Range(1, 1000)] = 5
    views: Views = 64
    template: str | Sequence[str] = DEFAULT
    no_class_weights: ClassVar[str | None] = "it compares them with the mode of several views"
    of_pictures: ClassVar[bool] = True
    vit_b16: ClassVar[tuple[tuple[dict[str, Any], int], ...]] = (({}, 0),)

    def learner(self, clip: Clip, names: Sequence[str]) -> Learner:
        return _MTA(clip, self, names)


class _MTA(OfViews, TemplateLearner):
    @torch.no_grad()
    def logits(self, features: Tensor, weights: Tensor | None = None) -> Tensor:
        """B C from B V E."""
        f, texts = self.views_of(features), self.weights()
        p = self.clip.compare(f, texts).float().softmax(-1).to(f.dtype)
        return self.clip.compare(mode(f, p, self.method), texts)


def mode(f: Tensor, p: Tensor, method: MTA) -> Tensor:
    """B E: where the views B V E of norm 1 are dense, those that agree on p B V C before others."""
    count, tiny = f.shape[1], torch.finfo(f.dtype).tiny
    if count == 1:
        return f[:, 0]
    distances = torch.cdist(f, f).sort(dim=-1).values[..., 1 : 1 + max(1, int(method.near * (count - 1)))]
    width = (0.5 * distances.square().mean(-1)).clamp(min=tiny)  # h²
    agree = p @ p.transpose(1, 2)
    y, m = torch.full_like(width, 1 / count), f[:, 0]

    def kernel(m: Tensor) -> Tensor:
        return torch.exp(-(f - m[:, None]).square().sum(-1) / (2 * width))

    for _ in range(method.rounds):
        dense = kernel(m)
        for _ in range(method.rounds):
            y = ((dense + method.agreement * (agree @ y[..., None])[..., 0]) / method.smooth).softmax(-1)
        for _ in range(method.rounds):
            m = F.normalize(((kernel(m) * y)[..., None] * f).sum(1), dim=-1)
    return m
