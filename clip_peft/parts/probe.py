"""A linear probe that starts from the class texts."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clip_peft.frozen import Clip, raw_features
from clip_peft.learner import Learner


class ProbeLearner(Learner):
    """W (C, E) from the class features as the tower gives them, whose rows each forward normalises where `method.normalise`."""

    def __init__(self, clip: Clip, method: Any, names: Any):
        super().__init__(clip, method, names)
        self.text_passes = clip.text_passes(self.names, method.template)
        start = self.raw_texts().float()
        self.weight = nn.Parameter(start if method.normalise else F.normalize(start, dim=-1))

    @torch.no_grad()
    def raw_texts(self) -> Tensor:
        return raw_features(self.text_passes)

    def class_features(self) -> Tensor:
        return F.normalize(self.weight, dim=-1) if self.method.normalise else self.weight

    def logits(self, features: Tensor, weights: Tensor | None = None) -> Tensor:
        return super().logits(features.to(self.weight.dtype), weights)
