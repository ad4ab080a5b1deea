from collections.abc import Sequence
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from clip_peft.learner import Clip, Learner, OpenVocabularyMethod, TemplateLearner
from clip_peft.text.templates import DEFAULT
from peft_core.errors import PeftError


@dataclass(frozen=True, kw_only=True)
class CLIPAdapter(OpenVocabularyMethod):
    """CLIP-Adapter: f' = α · relu(W₂ relu(W₁ f)) + (1 − α) · f on image features; W₁ (E/r, E), W₂ (E, E/r), no biases.

    Gao et al., "CLIP-Adapter: Better Vision-Language Models with Feature Adapters", IJCV 2023; gaopengcuhk/CLIP-Adapter,
    whose code has the image adapter only. f is not normalised, f' is. 131,072 parameters on ViT-B-16.

    Args:
        reduction: r.
        ratio: α.
        template: of the class texts (see zero_shot).
    """

    reduction: int = 4
    ratio: float = 0.2
    template: str | Sequence[str] = DEFAULT

    def learner(self, clip: Clip, names: Sequence[str]) -> Learner:
        if not 0 <= self.ratio <= 1:
            raise PeftError(f"clip_adapter got ratio {self.ratio}: it must lie between 0 and 1.")
        return _CLIPAdapter(clip, self, names)


class _CLIPAdapter(TemplateLearner):
    def __init__(self, clip: Clip, method: CLIPAdapter, names: Sequence[str]):
        super().__init__(clip, method, names)
        features, device = clip.tower.features, clip.tower.device
        hidden = max(1, features // method.reduction)
        self.down = nn.Linear(features, hidden, bias=False, device=device)
        self.up = nn.Linear(hidden, features, bias=False, device=device)

    def logits(self, features: Tensor) -> Tensor:
        f = features.to(self.down.weight.dtype)
        change = F.relu(self.up(F.relu(self.down(f))))
        return super().logits(self.method.ratio * change + (1 - self.method.ratio) * f)
