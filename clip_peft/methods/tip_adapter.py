from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clip_peft.frozen import Clip, cosine
from clip_peft.learner import Learner, OpenVocabularyMethod, TemplateLearner
from clip_peft.parts.remembering import ALPHAS, BETAS, Remembering
from clip_peft.text.templates import DEFAULT
from peft_core.values import NotNegative


@dataclass(frozen=True, kw_only=True)
class TipAdapter(OpenVocabularyMethod):
    """Tip-Adapter: logits = s · f̂ tᵀ + α · exp(−β (1 − f̂ Kᵀ)) L, a cache of training features K (N, E) and one-hot L (N, C).

    Zhang et al., "Tip-Adapter: Training-free Adaption of CLIP for Few-shot Classification", ECCV 2022;
    gaopengcuhk/Tip-Adapter. `remember(features, labels)` fills the cache: with several views of each picture (K N E) a key
    is the normalised mean of its unnormalised features. With `fine_tune` (Tip-Adapter-F) K trains: 8,192,000 parameters for
    16 shots of 1,000 classes on ViT-B-16.

    Args:
        alpha: α; None is 1.17, the paper's start value, until it is chosen on validation pictures.
        beta: β; None likewise, 1.0.
        fine_tune: whether the keys train.
        template: of the class texts (see zero_shot).
    """

    alpha: NotNegative | None = None
    beta: NotNegative | None = None
    fine_tune: bool = False
    template: str | Sequence[str] = DEFAULT
    no_class_weights: ClassVar[str | None] = "it adds what a cache of pictures says"
    customary: ClassVar[Mapping[str, str]] = {"imagenet": "ensemble7"}
    of_classes: ClassVar[str | None] = "its cache holds pictures of the classes it was filled with"
    vit_b16: ClassVar[tuple[tuple[dict[str, Any], int], ...]] = (({}, 0), ({"fine_tune": True}, 8_192_000))

    @classmethod
    def examples(cls) -> Iterable["TipAdapter"]:
        return cls(fine_tune=True), cls()

    @property
    def strengths(self) -> tuple[float, float]:
        """α, β."""
        return 1.17 if self.alpha is None else self.alpha, 1.0 if self.beta is None else self.beta

    def learner(self, clip: Clip, names: Sequence[str]) -> Learner:
        return _TipAdapter(clip, self, names)


class _TipAdapter(Remembering, TemplateLearner):
    sized = ("keys", "values")

    def __init__(self, clip: Clip, method: TipAdapter, names: Sequence[str]):
        super().__init__(clip, method, names)
        device = clip.tower.device
        self.keys = nn.Parameter(torch.empty(0, clip.tower.features, device=device), requires_grad=method.fine_tune)
        self.values: Tensor
        self.register_buffer("values", torch.empty(0, dtype=torch.long, device=device))

    def start(self, features: Tensor, labels: Tensor) -> None:
        keys = F.normalize(features.mean(0).float(), dim=-1)
        self.keys = nn.Parameter(keys, requires_grad=self.method.fine_tune)
        self.values = labels

    def logits(self, features: Tensor, weights: Tensor | None = None) -> Tensor:
        self.check_started()
        alpha, beta = self.method.strengths
        return super().logits(features, weights) + alpha * self.cache(
            cosine(features.to(self.keys.dtype), self.keys), beta
        )

    def cache(self, near: Tensor, beta: float) -> Tensor:
        """exp(−β (1 − cosine)) L, B C."""
        weight = torch.exp(-beta * (1 - near))
        return weight.new_zeros(weight.shape[0], len(self.names)).index_add(1, self.values, weight)

    def choices(self, features: Tensor) -> Iterator[tuple[dict[str, Any], Tensor]]:
        method, (alpha, beta) = self.method, self.method.strengths
        if None not in (method.alpha, method.beta):
            return
        alphas = [alpha] if method.alpha is not None else [alpha, *ALPHAS]
        betas = [beta] if method.beta is not None else [beta, *BETAS]
        texts, near = super().logits(features), cosine(features, self.keys)
        for beta in betas:
            cache = self.cache(near, beta)
            yield from (({"alpha": alpha, "beta": beta}, texts + alpha * cache) for alpha in alphas)
