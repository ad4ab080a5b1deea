from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from clip_peft.frozen import Clip
from clip_peft.learner import Learner, OpenVocabularyMethod
from clip_peft.parts.probe import ProbeLearner
from clip_peft.parts.remembering import Remembering, sums_of_classes
from clip_peft.text.templates import DEFAULT


@dataclass(frozen=True, kw_only=True)
class CLAP(OpenVocabularyMethod):
    """CLAP: a linear probe with a zero-shot start (`linear_probe`) that each class's own multiplier holds near its text:
    loss = CE + mean_c λ_c ‖w_c − t_c‖², λ_c the mean probability that zero-shot gives class c on its training pictures.

    Silva-Rodríguez et al., "A Closer Look at the Few-Shot Adaptation of Large Vision-Language Models", CVPR 2024; jusiro/CLAP
    (ZS, l2). t_c and the start of w_c are the class features as the tower gives them; λ is taken over all views and stays.
    A class without training pictures gets λ = 1. C · E parameters.

    Args:
        template: of the class texts (see zero_shot).
    """

    template: str | Sequence[str] = DEFAULT
    normalise: ClassVar[bool] = True
    customary: ClassVar[Mapping[str, str]] = {"imagenet": "ensemble8"}
    of_classes: ClassVar[str | None] = "each class has learnt a weight vector of its own"
    vit_b16: ClassVar[tuple[tuple[dict[str, Any], int], ...]] = (({}, 512_000),)

    def learner(self, clip: Clip, names: Sequence[str]) -> Learner:
        return _CLAP(clip, self, names)


class _CLAP(Remembering, ProbeLearner):
    sized = ("multipliers",)

    def __init__(self, clip: Clip, method: CLAP, names: Sequence[str]):
        super().__init__(clip, method, names)
        self.multipliers: Tensor
        self.register_buffer("multipliers", torch.empty(0, device=clip.tower.device))

    def start(self, features: Tensor, labels: Tensor) -> None:
        f, labels = features.flatten(0, 1), labels.repeat(len(features))
        texts = F.normalize(self.remembered("raw", self.raw_texts), dim=-1)
        p = self.clip.compare(f, texts).softmax(-1).gather(1, labels[:, None])
        sums, counts = sums_of_classes(p, labels, len(self.names))
        self.multipliers = torch.where(counts > 0, sums[:, 0] / counts.clamp(min=1), 1.0).to(self.weight.dtype)

    def loss(self, features: Tensor, labels: Tensor, images: Tensor | None = None) -> Tensor:
        self.check_started()
        away = (self.weight - self.remembered("raw", self.raw_texts)).square().sum(-1)
        return super().loss(features, labels, images) + (self.multipliers * away).mean()
