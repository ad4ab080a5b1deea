import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from clip_peft.frozen import Clip
from clip_peft.learner import Learner, OpenVocabularyMethod, TemplateLearner
from clip_peft.parts.views import OfViews, Part, Views, confident_entropy, of_kept, surest
from clip_peft.text.templates import DEFAULT
from peft_core.values import Count, NotNegative, Share, Whole


@dataclass(frozen=True, kw_only=True)
class TDA(OpenVocabularyMethod):
    """TDA: two caches filled by the pictures that are named, one after the other; no gradient.
    logits = s · f̂ tᵀ + α exp(−β (1 − f̂ Kᵀ)) L − α₋ exp(−β₋ (1 − f̂ K₋ᵀ)) M.

    Karmanov et al., "Efficient Test-Time Adaptation of Vision-Language Models", CVPR 2024; kdiAAA/TDA. A picture goes into the
    positive cache of the class that zero-shot names, which keeps the `shots` of the lowest entropy (L one-hot), and, where its
    entropy H / log₂ C lies in `unsure`, into the negative one, which keeps `negatives` of a class with M = 1 for the classes
    whose probability lies in `unlikely`. With several views, features and probabilities are means over the surest. The
    caches start empty with each data set that is scored, whose pictures come in an order that is drawn once; `predict` fills
    them as pictures come. The thresholds are those of logits with a scale of 100, as there.

    Args:
        alpha: α, and
        beta: β, of the positive cache (published for each data set, which `fit` sets; here ImageNet's).
        negative_alpha: α₋, and
        negative_beta: β₋, of the negative one.
        shots: pictures a class in the positive cache.
        negatives: in the negative one; 0 leaves it out.
        unsure: entropies that the negative cache takes, least and most.
        unlikely: probabilities that it counts.
        confident: share of the views that is kept, at least one.
        views: V, which scoring and predicting make of a picture (64 on ImageNet's variants there).
        template: of the class texts (see zero_shot).
    """

    alpha: NotNegative = 2.0
    beta: NotNegative = 5.0
    negative_alpha: NotNegative = 0.117
    negative_beta: NotNegative = 1.0
    shots: Count = 3
    negatives: Whole = 2
    unsure: tuple[Share, Share] = (0.2, 0.5)
    unlikely: tuple[Share, Share] = (0.03, 1.0)
    confident: Part = 0.1
    views: Views = 1
    template: str | Sequence[str] = DEFAULT
    no_class_weights: ClassVar[str | None] = "it adds what a cache of the pictures before says"
    of_pictures: ClassVar[bool] = True
    of_stream: ClassVar[bool] = True
    vit_b16: ClassVar[tuple[tuple[dict[str, Any], int], ...]] = (({}, 0),)
    published: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        name: {"alpha": alpha, "beta": beta}
        for name, alpha, beta in (
            ("caltech101", 5.0, 5.0), ("dtd", 2.0, 3.0), ("eurosat", 4.0, 8.0), ("fgvc_aircraft", 2.0, 2.0),
            ("food101", 1.0, 1.0), ("oxford_flowers", 1.0, 5.0), ("oxford_pets", 2.0, 7.0), ("stanford_cars", 1.0, 7.0),
            ("sun397", 2.0, 3.0), ("ucf101", 3.0, 8.0), ("imagenet_r", 1.0, 8.0), ("imagenet_sketch", 2.363, 7.45),
            ("imagenetv2", 1.0, 8.0),
        )
    }  # fmt: skip

    def learner(self, clip: Clip, names: Sequence[str]) -> Learner:
        return _TDA(clip, self, names)


class _Cache:
    """The surest pictures of each class: keys C S E, values C S C, and their entropies, infinite where there is none."""

    def __init__(self, classes: int, shots: int, like: Tensor):
        self.keys = like.new_zeros(classes, shots, like.shape[-1])
        self.values = like.new_zeros(classes, shots, classes)
        self.entropy = like.new_full((classes, shots), math.inf)

    def take(self, place: int, key: Tensor, value: Tensor, entropy: Tensor) -> None:
        """In the place of the least sure of its class, where it is surer."""
        worst = self.entropy[place].argmax()
        if entropy < self.entropy[place, worst]:
            self.keys[place, worst], self.values[place, worst], self.entropy[place, worst] = key, value, entropy

    def logits(self, f: Tensor, beta: float) -> Tensor:
        full = self.entropy.isfinite()
        return torch.exp(-beta * (1 - self.keys[full] @ f)) @ self.values[full]


class _TDA(OfViews, TemplateLearner):
    def begin(self) -> None:
        self.caches: tuple[_Cache, _Cache] | None = None

    def for_names(self) -> None:
        super().for_names()
        self.begin()

    @torch.no_grad()
    def logits(self, features: Tensor, weights: Tensor | None = None) -> Tensor:
        """B C from B V E or B E; the pictures are taken in their order."""
        f, method, classes = self.views_of(features), self.method, len(self.names)
        logits = self.clip.compare(f, self.weights())
        kept = surest(logits, method.confident)
        h, p = confident_entropy(logits, kept).to(f.dtype), of_kept(logits, kept).softmax(-1).mean(1)
        f, logits = of_kept(f, kept).mean(1), of_kept(logits, kept).mean(1)
        if self.caches is None:
            self.caches = _Cache(classes, method.shots, f), _Cache(classes, method.negatives, f)
        positive, negative = self.caches
        (low, high), (least, most) = method.unsure, method.unlikely
        unsure = h / math.log2(max(2, classes))
        eye, mask, rows = torch.eye(classes).to(f), ((p > least) & (p < most)).to(f.dtype), []
        for i, place in enumerate(logits.argmax(-1).tolist()):
            positive.take(place, f[i], eye[place], h[i])
            if method.negatives and low < unsure[i] < high:
                negative.take(place, f[i], mask[i], h[i])
            own = method.alpha * positive.logits(f[i], method.beta)
            rows.append(logits[i] + own - method.negative_alpha * negative.logits(f[i], method.negative_beta))
        return torch.stack(rows)
