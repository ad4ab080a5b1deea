"""A context that each picture shifts by what a small net makes of its feature: CoCoOp's."""

from collections.abc import Sequence
from typing import Annotated, Any

import torch.nn.functional as F
from torch import Tensor, nn

from clip_peft.frozen import Clip
from clip_peft.parts.context import ContextLearner


class ConditionalContext(ContextLearner):
    """v + W₂ relu(W₁ f + b₁) + b₂ of normalised features f, `method.reduction` times as narrow inside; `class_features` are those
    of v alone, which stand for no picture."""

    def __init__(self, clip: Clip, method: Any, names: Sequence[str], context: Tensor, **of_context: Any):
        super().__init__(clip, method, names, context, **of_context)
        features, device = clip.tower.features, context.device
        hidden = max(1, features // method.reduction)
        self.meta_net = nn.Sequential(
            nn.Linear(features, hidden, device=device), nn.ReLU(), nn.Linear(hidden, clip.tower.width, device=device)
        )

    def texts_for(self, features: Tensor) -> Annotated[Tensor, "B C E"]:
        f = F.normalize(features, dim=-1)
        shift = self.meta_net(f.to(self.context.dtype))
        return self.text_pass((self.context + shift[:, None])[:, None])

    def logits(self, features: Tensor, weights: Tensor | None = None) -> Tensor:
        texts = F.normalize(self.texts_for(features), dim=-1)
        return self.clip.compare(features[:, None], texts)[:, 0]
