from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clip_peft.frozen import Clip, mean_features, raw_features
from clip_peft.learner import Learner, OpenVocabularyMethod
from clip_peft.text.templates import DEFAULT
from peft_core.values import NotNegative


@dataclass(frozen=True, kw_only=True)
class TaskRes(OpenVocabularyMethod):
    """TaskRes: t' = t + α x on the class features t (C, E), x (C, E) starting at zero; logits = s · cos(f, t').

    Yu et al., "Task Residual for Tuning Vision-Language Models", CVPR 2023; geekyutao/TaskRes:
    t is not normalised, the mean over templates of what the tower gives (norm about 10), to which x is added.
    512,000 parameters for 1,000 classes on ViT-B-16.

    Args:
        alpha: α (1.0 for Oxford Flowers there).
        template: of the class texts (see zero_shot).
    """

    alpha: NotNegative = 0.5
    template: str | Sequence[str] = DEFAULT
    customary: ClassVar[Mapping[str, str]] = {"imagenet": "ensemble8"}
    of_classes: ClassVar[str | None] = "each class has learnt a residual of its own"
    vit_b16: ClassVar[tuple[tuple[dict[str, Any], int], ...]] = (({}, 512_000),)

    def learner(self, clip: Clip, names: Sequence[str]) -> Learner:
        return _TaskRes(clip, self, names)


class _TaskRes(Learner):
    def __init__(self, clip: Clip, method: TaskRes, names: Sequence[str]):
        super().__init__(clip, method, names)
        self.text_passes = clip.text_passes(self.names, method.template)
        shape = (len(self.names), clip.tower.features)
        self.residual = nn.Parameter(torch.zeros(shape, device=clip.tower.device))

    @property
    def base(self) -> Tensor:
        """t: C E, not normalised."""
        return self.remembered("base", self.base_features)

    @torch.no_grad()
    def base_features(self) -> Tensor:
        return raw_features(self.text_passes)

    def class_features(self) -> Tensor:
        return F.normalize(self.base + self.method.alpha * self.residual, dim=-1)

    @torch.no_grad()
    def from_format(self, tensors: dict[str, Tensor], format: int) -> dict[str, Tensor]:
        """A former adapter's residual stood beside class features u of norm 1: x' with t + α x' along u + α x."""
        if format > 1 or not self.method.alpha:
            return tensors
        t, alpha, x = self.base, self.method.alpha, tensors["residual"].to(self.residual.device)
        there = (mean_features(self.text_passes) + alpha * x) * t.norm(dim=-1, keepdim=True)
        return tensors | {"residual": ((there - t) / alpha).float()}
