from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clip_peft.frozen import Clip
from clip_peft.learner import Learner
from clip_peft.parts.context import ContextLearner, ContextMethod, start_context
from clip_peft.text.templates import DEFAULT
from peft_core.method import Method
from peft_core.values import Count, NotNegative, Positive, Share


@dataclass(frozen=True, kw_only=True)
class DePTCLIP(ContextMethod):
    """DePT: beside CoOp's or KgCoOp's prompt a linear head on features of its own channels, which base classes alone use.

    Zhang et al., "DePT: Decoupled Prompt Tuning", CVPR 2024; Koorye/DePT. With f and t_c as the towers give them, and φ(x) = a
    ⊙ x + b apart for pictures and texts (a 1 and b 0 at the start), loss = (1 − λ) CE(s · f̂·t̂_c) + λ CE(W φ(·) + d) over the
    pictures and the texts of their labels, + w · mean_c(1 − cos(t_c, h_c)), h_c the hand-written features. The classes that
    were trained on are named by (1 − λ) s f̂·t̂ + λ (W φ(f) + d), any others by the prompt alone. φ and W learn at `faster` times
    the rate.
    517,096 parameters on ViT-B-16 with 1,000 classes. (Not the prompt method `dept`, which decomposes prompts.)

    Args:
        context: M; where None, the number of tokens of `init`, or 4.
        init: a text whose token embeddings the context starts from; None for N(0, 0.02²).
        share: λ.
        near: w; 0 is CoOp with DePT, 2 there is KgCoOp with DePT.
        faster: the rate of φ and W, as a multiple of the context's.
        template: of the hand-written prompts.
    """

    context: Count | None = None
    init: str | None = "a photo of a"
    share: Share = 0.7
    near: NotNegative = 2.0
    faster: Positive = 6.5
    template: str | Sequence[str] = DEFAULT
    customary: ClassVar[Mapping[str, str]] = {"dtd": "a photo of a {}, a type of texture."}
    tells_trained: ClassVar[bool] = True
    no_class_weights: ClassVar[str | None] = "a head on other channels of the features has its say beside them"
    vit_b16: ClassVar[tuple[tuple[dict[str, Any], int], ...]] = (({}, 517_096),)

    @classmethod
    def examples(cls) -> Iterable[Method]:
        return (cls(), cls(near=0.0, init=None, context=2))

    def learner(self, clip: Clip, names: Sequence[str]) -> Learner:
        start = start_context(clip, self.name, self.context, self.init)
        return _DePT(clip, self, names, start, reference=self.template)


class _DePT(ContextLearner):
    def __init__(self, clip: Clip, method: DePTCLIP, names: Sequence[str], context: Tensor, reference: Any):
        super().__init__(clip, method, names, context, reference=reference)
        self.trained = self.names
        features, device = clip.tower.features, context.device
        self.of_texts, self.of_pictures = (_Channels(features, device) for _ in range(2))
        self.head = nn.Linear(features, len(self.names), device=device)

    @property
    def kept_names(self) -> tuple[str, ...]:
        return self.trained

    def text_parameters(self) -> list[nn.Parameter]:
        return [self.context]

    def parameter_groups(self, lr: float, weight_decay: float) -> Iterable[dict[str, Any]]:
        of_head = [p for part in (self.of_texts, self.of_pictures, self.head) for p in part.parameters()]
        for params, rate in (([self.context], lr), (of_head, lr * self.method.faster)):
            yield {"params": [p for p in params if p.ndim > 1], "lr": rate, "weight_decay": weight_decay}
            yield {"params": [p for p in params if p.ndim <= 1], "lr": rate, "weight_decay": 0.0}

    def logits(self, features: Tensor, weights: Tensor | None = None) -> Tensor:
        near = super().logits(features, weights)
        if self.names != self.trained:
            return near
        share = self.method.share
        return (1 - share) * near + share * self.head(self.of_pictures(features.to(self.head.weight.dtype)))

    def loss(self, features: Tensor, labels: Tensor, images: Tensor | None = None) -> Tensor:
        raw = self.text_pass(self.context)
        texts = F.normalize(raw, dim=-1)
        near = F.cross_entropy(self.clip.compare(features, texts), labels)
        both = torch.cat((self.of_texts(raw[labels]), self.of_pictures(features.to(raw.dtype))))
        apart = F.cross_entropy(self.head(both), torch.cat((labels, labels)))
        loss = (1 - self.method.share) * near + self.method.share * apart
        return loss + self.method.near * (1 - (texts * self.hand).sum(-1)).mean() if self.method.near else loss


class _Channels(nn.Module):
    """a ⊙ x + b."""

    def __init__(self, features: int, device: torch.device):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(features, device=device))
        self.bias = nn.Parameter(torch.zeros(features, device=device))

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * x + self.bias
