from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from clip_peft.learner import Clip, Learner, OpenVocabularyMethod, mean_features
from clip_peft.text.templates import DEFAULT


@dataclass(frozen=True, kw_only=True)
class LinearProbe(OpenVocabularyMethod):
    """Linear probe with a zero-shot start: logits = s · W f̂ with f̂ = f/‖f‖ and W (C, E) starting at the class features.

    Silva-Rodríguez et al., "A Closer Look at the Few-Shot Adaptation of Large Vision-Language Models", CVPR 2024 (ZS-LP);
    jusiro/CLAP. W's rows are not normalised while it trains. C · E parameters.

    Args:
        template: of the class texts that W starts from (see zero_shot).
    """

    template: str | Sequence[str] = DEFAULT
    of_classes: ClassVar[str | None] = "each class has learnt a weight vector of its own"

    def learner(self, clip: Clip, names: Sequence[str]) -> Learner:
        return _LinearProbe(clip, self, names)


class _LinearProbe(Learner):
    def __init__(self, clip: Clip, method: LinearProbe, names: Sequence[str]):
        super().__init__(clip, method, names)
        with torch.no_grad():
            start = mean_features(clip.text_passes(self.names, method.template))
        self.weight = nn.Parameter(start.float())

    def class_features(self) -> Tensor:
        return self.weight

    def logits(self, features: Tensor) -> Tensor:
        return self.clip.compare(features.to(self.weight.dtype), self.weight)
