from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clip_peft.learner import Clip, Learner, OpenVocabularyMethod, mean_features
from clip_peft.text.templates import DEFAULT


@dataclass(frozen=True, kw_only=True)
class TaskRes(OpenVocabularyMethod):
    """TaskRes: t' = t + α x on the normalised class features t (C, E), x (C, E) starting at zero; logits = s · cos(f, t').

    Yu et al., "Task Residual for Tuning Vision-Language Models", CVPR 2023; geekyutao/TaskRes.
    512,000 parameters for 1,000 classes on ViT-B-16.

    Args:
        alpha: α (1.0 for Oxford Flowers there).
        template: of the class texts (see zero_shot).
    """

    alpha: float = 0.5
    template: str | Sequence[str] = DEFAULT
    of_classes: ClassVar[str | None] = "each class has learnt a residual of its own"

    def learner(self, clip: Clip, names: Sequence[str]) -> Learner:
        return _TaskRes(clip, self, names)


class _TaskRes(Learner):
    def __init__(self, clip: Clip, method: TaskRes, names: Sequence[str]):
        super().__init__(clip, method, names)
        with torch.no_grad():
            base = mean_features(clip.text_passes(self.names, method.template))
        self.base: Tensor
        self.register_buffer("base", base, persistent=False)
        self.residual = nn.Parameter(torch.zeros_like(base, dtype=torch.float32))

    def class_features(self) -> Tensor:
        return F.normalize(self.base + self.method.alpha * self.residual, dim=-1)
