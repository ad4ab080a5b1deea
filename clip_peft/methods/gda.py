from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from clip_peft.frozen import Clip, product
from clip_peft.learner import Learner, OpenVocabularyMethod, TemplateLearner
from clip_peft.parts.remembering import Remembering, sums_of_classes
from clip_peft.text.prompts import spoken
from clip_peft.text.templates import DEFAULT
from peft_core.values import NotNegative, Whole

ALPHAS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0, 100.0)


@dataclass(frozen=True, kw_only=True)
class GDA(OpenVocabularyMethod):
    """Gaussian discriminant analysis beside zero-shot: logits = s · f̂ tᵀ + α (f̂ Wᵀ + b), nothing trains.

    Wang et al., "A Hard-to-Beat Baseline for Training-free CLIP-based Adaptation", ICLR 2024; mrflogs/ICLR24.
    μ_c is the mean of a class's normalised training features (all views), Σ their covariance around these means, and
    Σ⁻¹ = E · pinv((N − 1) Σ + tr(Σ) I); W = μ Σ⁻¹ (C, E), b_c = log 1/C − ½ μ_cᵀ Σ⁻¹ μ_c.

    Names that it has no pictures of: μ is the mean of the text's `neighbours` nearest training features and, 16 times, of the
    text t itself; Σ the spread of these features around t, with the same Σ⁻¹, of which the mean over these names is taken.
    Their code names base and new classes apart; where both stand in one list, each class has its own row here, and all have the
    prior of the first ones, which no comparison feels. Their base-to-new script inverts the mean of the classes' covariances
    plainly, their few-shot script as above, as here.

    Args:
        alpha: α; None is 0.1 until it is chosen on val, from 1e-4 … 100.
        neighbours: k; 0 keeps no features, and then it names its own classes only.
        template: of the class texts (see zero_shot).
    """

    alpha: NotNegative | None = None
    neighbours: Whole = 64
    template: str | Sequence[str] = DEFAULT
    no_class_weights: ClassVar[str | None] = "it adds what it knows of pictures, with a bias of each class"
    vit_b16: ClassVar[tuple[tuple[dict[str, Any], int], ...]] = (({}, 0),)

    @property
    def of_classes(self) -> str | None:  # type: ignore[override]
        return None if self.neighbours else "it kept no features of pictures (neighbours 0)"

    @classmethod
    def examples(cls) -> Iterable["GDA"]:
        return cls(neighbours=4), cls(neighbours=0)

    def learner(self, clip: Clip, names: Sequence[str]) -> Learner:
        return _GDA(clip, self, names)


class _GDA(Remembering, TemplateLearner):
    sized = ("weight", "bias", "features")

    def __init__(self, clip: Clip, method: GDA, names: Sequence[str]):
        super().__init__(clip, method, names)
        self.own_names, device = self.names, clip.tower.device
        self.weight: Tensor
        self.bias: Tensor
        self.features: Tensor
        self.register_buffer("weight", torch.empty(0, clip.tower.features, device=device))
        self.register_buffer("bias", torch.empty(0, device=device))
        self.register_buffer("features", torch.empty(0, clip.tower.features, device=device))

    @property
    def kept_names(self) -> tuple[str, ...]:
        return self.own_names

    def start(self, features: Tensor, labels: Tensor) -> None:
        f, labels = F.normalize(features, dim=-1).flatten(0, 1), labels.repeat(len(features))
        self.features = f if self.method.neighbours else f[:0]
        sums, counts = sums_of_classes(f.double(), labels, len(self.names))
        means = sums / counts.clamp(min=1)[:, None]
        apart = f.double() - means[labels]
        inverse = ridge_inverse(apart.T.cov(), len(f))
        weight, bias = discriminant(means, inverse)
        if not bool(counts.all()):  # classes without pictures, which a drawn training set may have
            weight, bias = self._with_others(weight, bias, counts > 0, f)
        self.weight, self.bias = weight.to(f.dtype), bias.to(f.dtype)

    def classifier(self) -> tuple[Tensor, Tensor]:
        """W, b of the present names."""
        self.check_started()
        if self.names == self.own_names:
            return self.weight, self.bias
        both = self.remembered("classifier", self._of_names, [self.weight, self.features])
        return both[:, :-1], both[:, -1]

    def _of_names(self) -> Tensor:
        places = {spoken(name): place for place, name in enumerate(self.own_names)}
        found = torch.tensor([places.get(spoken(name), -1) for name in self.names], device=self.weight.device)
        weight, bias = self.weight[found].double(), self.bias[found].double()
        weight, bias = self._with_others(weight, bias, found >= 0, self.features)
        return torch.cat((weight, bias[:, None]), dim=1).to(self.weight.dtype)

    def _with_others(self, weight: Tensor, bias: Tensor, known: Tensor, features: Tensor) -> tuple[Tensor, Tensor]:
        """Rows of the texts' neighbours in place of those that are not known."""
        if bool(known.all()):
            return weight, bias
        texts = self.weights()[~known].double()
        own, others = neighbours(texts, features.double(), max(1, self.method.neighbours), len(self.own_names))
        return weight.index_put((~known,), own), bias.index_put((~known,), others)

    def choices(self, features: Tensor) -> Iterator[tuple[dict[str, Any], Tensor]]:
        if self.method.alpha is None:
            texts, pictures = super().logits(features), self._of_pictures(features)
            yield from (({"alpha": alpha}, texts + alpha * pictures) for alpha in (0.1, *ALPHAS))

    def _of_pictures(self, features: Tensor) -> Tensor:
        weight, bias = self.classifier()
        return product(F.normalize(features, dim=-1).to(weight.dtype), weight) + bias

    def logits(self, features: Tensor, weights: Tensor | None = None) -> Tensor:
        alpha = 0.1 if self.method.alpha is None else self.method.alpha
        return super().logits(features, weights) + alpha * self._of_pictures(features)


def ridge_inverse(covariance: Tensor, count: int) -> Tensor:
    """E · pinv((N − 1) Σ + tr(Σ) I), the estimate of Kubokawa and Srivastava that holds for fewer samples than dimensions."""
    size = covariance.shape[-1]
    eye = torch.eye(size, dtype=covariance.dtype, device=covariance.device)
    trace = covariance.diagonal(dim1=-2, dim2=-1).sum(-1)[..., None, None]
    return size * torch.linalg.pinv((count - 1) * covariance + trace * eye, hermitian=True)


def discriminant(means: Tensor, inverse: Tensor) -> tuple[Tensor, Tensor]:
    """W = μ Σ⁻¹, b_c = log 1/C − ½ μ_cᵀ Σ⁻¹ μ_c."""
    weight = means @ inverse
    return weight, -torch.tensor(float(len(means))).log() - (weight * means).sum(-1) / 2


def neighbours(texts: Tensor, features: Tensor, count: int, classes: int) -> tuple[Tensor, Tensor]:
    """W, b of texts from the features nearest to each."""
    near = features[(texts @ features.T).topk(min(count, len(features))).indices]  # C k E
    count = near.shape[1]
    means = (near.sum(1) + 16 * texts) / (count + 16)
    inverse = torch.zeros(features.shape[1], features.shape[1], dtype=features.dtype, device=features.device)
    for text, own in zip(texts, near, strict=True):
        apart = own - text
        inverse += ridge_inverse(apart.T @ apart / max(1, count - 1), count) / len(texts)
    weight = means @ inverse
    return weight, -torch.tensor(float(classes)).log() - (weight * means).sum(-1) / 2
