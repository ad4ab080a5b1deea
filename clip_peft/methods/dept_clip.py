from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clip_peft.frozen import Clip
from clip_peft.learner import Learner
from clip_peft.parts.conditional import ConditionalContext
from clip_peft.parts.context import ContextLearner, ContextMethod, start_context
from clip_peft.parts.deep_prompts import CoupledPrompts
from clip_peft.text.templates import DEFAULT
from peft_core.method import Method
from peft_core.values import Count, NotNegative, Positive, Share


@dataclass(frozen=True, kw_only=True)
class DePTCLIP(ContextMethod):
    """DePT: beside another method's prompt a linear head on features of its own channels, which base classes alone use.

    Zhang et al., "DePT: Decoupled Prompt Tuning", CVPR 2024 (2309.07439); Koorye/DePT. With f and t_c as the towers give them,
    and φ(x) = a ⊙ x + b apart for pictures and texts (a 1 and b 0 at the start), loss = (1 − λ) CE(s · f̂·t̂_c) + λ CE(W φ(·) + d)
    over the pictures and the texts of their labels, + w · mean_c(1 − cos(t_c, h_c)), h_c the hand-written features. The classes
    that were trained on are named by (1 − λ) s f̂·t̂ + λ (W φ(f) + d), any others by the prompt alone. φ and W learn at `faster`
    times the rate. `prompt` says whose it is: one `context` (CoOp's; with w KgCoOp's), a `conditional` one, which each picture
    shifts (CoCoOp's: each picture has texts of its own), or prompts that are `coupled` over both towers (MaPLe's).
    517,096 parameters on ViT-B-16 with 1,000 classes; conditional 550,408, coupled 4,070,120. (Not the prompt method `dept`,
    which decomposes prompts.)

    Args:
        prompt: context, conditional or coupled.
        context: M; where None, the number of tokens of `init`, or 4; coupled: 2, the first ones of `init`.
        init: a text whose token embeddings the context starts from.
        share: λ.
        near: w; None is 2 with one context (KgCoOp with DePT; 0 is CoOp with DePT), else 0, as there.
        faster: the rate of φ and W, as a multiple of the prompts'.
        template: of the hand-written prompts.
        reduction: of a conditional context (see cocoop).
        depth: of coupled prompts (see maple).
    """

    prompt: Literal["context", "conditional", "coupled"] = "context"
    context: Count | None = None
    init: str | None = "a photo of a"
    share: Share = 0.7
    near: NotNegative | None = None
    faster: Positive = 6.5
    template: str | Sequence[str] = DEFAULT
    reduction: Count = 16
    depth: Count = 9
    customary: ClassVar[Mapping[str, str]] = {"dtd": "a photo of a {}, a type of texture."}
    tells_trained: ClassVar[bool] = True
    no_class_weights: ClassVar[str | None] = "a head on other channels of the features has its say beside them"

    @property
    def of_pictures(self) -> bool:  # type: ignore[override]
        return self.prompt == "conditional"

    vit_b16: ClassVar[tuple[tuple[dict[str, Any], int], ...]] = (
        ({}, 517_096), ({"prompt": "conditional"}, 550_408), ({"prompt": "coupled"}, 4_070_120),
    )  # fmt: skip

    @classmethod
    def examples(cls) -> Iterable[Method]:
        return (
            cls(), cls(near=0.0, init=None, context=2), cls(prompt="conditional", reduction=2), cls(prompt="coupled", depth=2),
        )  # fmt: skip

    def learner(self, clip: Clip, names: Sequence[str]) -> Learner:
        near = self.near if self.near is not None else 2.0 if self.prompt == "context" else 0.0
        own: dict[str, Any] = {"near": near, "reference": self.template if near else None}
        if self.prompt == "coupled":
            return _OnCoupled(clip, self, names, context=2 if self.context is None else self.context, **own)
        start = start_context(clip, self.name, self.context, self.init)
        kind = _OnConditional if self.prompt == "conditional" else _OnContext
        return kind(clip, self, names, start, **own)


class _Decoupled(ContextLearner):
    """The head beside prompts, which a class behind it makes."""

    def __init__(self, clip: Clip, method: DePTCLIP, names: Sequence[str], *start: Any, near: float, **prompts: Any):
        super().__init__(clip, method, names, *start, **prompts)
        self.near, self.trained = near, self.names
        features, device = clip.tower.features, self.context.device
        self.of_texts, self.of_pictures = (_Channels(features, device) for _ in range(2))
        self.head = nn.Linear(features, len(self.names), device=device)

    @property
    def kept_names(self) -> tuple[str, ...]:
        return self.trained

    def of_head(self) -> list[nn.Parameter]:
        """φ, W and d."""
        return [p for part in (self.of_texts, self.of_pictures, self.head) for p in part.parameters()]

    def text_parameters(self) -> list[nn.Parameter]:
        head = {*self.of_head()}
        return [p for p in super().text_parameters() if p not in head]

    def parameter_groups(self, lr: float, weight_decay: float) -> Iterable[dict[str, Any]]:
        head = self.of_head()
        prompts = [p for p in self.parameters() if p not in {*head}]
        for params, rate in ((prompts, lr), (head, lr * self.method.faster)):
            yield {"params": [p for p in params if p.ndim > 1], "lr": rate, "weight_decay": weight_decay}
            yield {"params": [p for p in params if p.ndim <= 1], "lr": rate, "weight_decay": 0.0}

    def logits(self, features: Tensor, weights: Tensor | None = None) -> Tensor:
        near = super().logits(features, weights)
        if self.names != self.trained:
            return near
        share = self.method.share
        return (1 - share) * near + share * self.head(self.of_pictures(features.to(self.head.weight.dtype)))

    def loss(self, features: Tensor, labels: Tensor, images: Tensor | None = None) -> Tensor:
        raw = self.texts_for(features)
        texts = F.normalize(raw, dim=-1)
        if raw.dim() == 2:
            own, logits = raw[labels], self.clip.compare(features, texts)
        else:
            own, logits = raw[range(len(raw)), labels], self.clip.compare(features[:, None], texts)[:, 0]
        both = torch.cat((self.of_texts(own), self.of_pictures(features.to(raw.dtype))))
        apart = F.cross_entropy(self.head(both), torch.cat((labels, labels)))
        loss = (1 - self.method.share) * F.cross_entropy(logits, labels) + self.method.share * apart
        return loss + self.near * (1 - (texts * self.hand).sum(-1)).mean() if self.near else loss


class _OnContext(_Decoupled):
    """Beside one context for all pictures."""


class _OnConditional(_Decoupled, ConditionalContext):
    """Beside a context that each picture shifts."""


class _OnCoupled(_Decoupled, CoupledPrompts):
    """Beside prompts of both towers."""


class _Channels(nn.Module):
    """a ⊙ x + b."""

    def __init__(self, features: int, device: torch.device):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(features, device=device))
        self.bias = nn.Parameter(torch.zeros(features, device=device))

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * x + self.bias
