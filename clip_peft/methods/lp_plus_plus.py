from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clip_peft.frozen import Clip, product
from clip_peft.learner import Learner, OpenVocabularyMethod, TemplateLearner
from clip_peft.parts.remembering import Remembering, sums_of_classes
from clip_peft.text.templates import DEFAULT
from peft_core.values import Count


@dataclass(frozen=True, kw_only=True)
class LPPlusPlus(OpenVocabularyMethod):
    """LP++: logits = W f̂ + b + α ⊙ (T f̂), a linear probe W (C, E) beside class texts T that each class weighs by its α_c.

    Huang et al., "LP++: A Surprisingly Strong Linear Probe for Few-Shot CLIP", CVPR 2024;
    FereshteShakeri/FewShot-CLIP-Strong-Baseline. Nothing is searched: W starts at the sums of each class's features, α at
    250 · mean_c mean_{i ∈ c} f̂_i t_c, and the steps are those that the loss's curvature allows, times fit's `lr` of 1:
    4 N / λ_max(FᵀF) for W and b (SGD, momentum 0.9, all pictures at once), N / (4 max_c Σ_i (f̂_i t_c)²) for α, which moves
    every `pause` steps by the sum of all gradients since the start, as their code's never emptied gradient has it. The model's
    logit scale plays no part. b starts at zero (there at noise of ±E^-½); the last step counts (there the best on val).
    C (E + 2) parameters.

    Args:
        pause: steps from one of α's to the next.
        template: of the class texts (see zero_shot).
    """

    pause: Count = 10
    template: str | Sequence[str] = DEFAULT
    of_classes: ClassVar[str | None] = "each class has learnt a weight vector of its own"
    no_class_weights: ClassVar[str | None] = "each class has a bias of its own"
    vit_b16: ClassVar[tuple[tuple[dict[str, Any], int], ...]] = (({}, 514_000),)

    def learner(self, clip: Clip, names: Sequence[str]) -> Learner:
        return _LPPlusPlus(clip, self, names)


class _LPPlusPlus(Remembering, TemplateLearner):
    sized = ("gathered",)

    def __init__(self, clip: Clip, method: LPPlusPlus, names: Sequence[str]):
        super().__init__(clip, method, names)
        count, device = len(self.names), clip.tower.device
        self.weight = nn.Parameter(torch.zeros(count, clip.tower.features, device=device))
        self.bias = nn.Parameter(torch.zeros(count, device=device))
        self.alpha = nn.Parameter(torch.zeros(count, device=device))
        self.gathered: Tensor
        self.register_buffer("gathered", torch.empty(0, device=device))
        self.rates = (1.0, 1.0)

    def start(self, features: Tensor, labels: Tensor) -> None:
        f, labels = F.normalize(features, dim=-1).flatten(0, 1), labels.repeat(len(features))
        texts = f @ self.weights().to(f.dtype).T
        sums, counts = sums_of_classes(f, labels, len(self.names))
        own, _ = sums_of_classes(texts.gather(1, labels[:, None]), labels, len(self.names))
        seen = counts > 0
        self.weight.copy_(sums)
        self.bias.zero_()
        self.alpha.fill_(250 * (own[seen, 0] / counts[seen]).mean())
        self.gathered = torch.zeros_like(self.alpha, requires_grad=False)
        curvature = torch.linalg.eigvalsh(f.T @ f)[-1]
        self.rates = (4 * len(f) / curvature).item(), (len(f) / (4 * texts.square().sum(0).max())).item()

    def logits(self, features: Tensor, weights: Tensor | None = None) -> Tensor:
        self.check_started()
        f = F.normalize(features, dim=-1).to(self.weight.dtype)
        texts = product(f, self.weights() if weights is None else weights)
        return product(f, self.weight) + self.bias + self.alpha * texts

    def parameter_groups(self, lr: float, weight_decay: float) -> Iterable[dict[str, Any]]:
        return ({"params": [self.weight, self.bias], "lr": lr * self.rates[0], "weight_decay": weight_decay},)

    def after_step(self, step: int) -> None:
        if self.alpha.grad is not None:
            self.gathered += self.alpha.grad
            self.alpha.grad = None
        if step % self.method.pause == 0:
            self.alpha -= self.rates[1] * self.gathered
