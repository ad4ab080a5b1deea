"""A prompt that is tuned on each picture's views when it is named, and then forgotten: what TPT and its like share."""

from collections.abc import Sequence
from typing import Annotated, Any

import torch.nn.functional as F
from torch import Tensor

from clip_peft.frozen import Clip
from clip_peft.parts.context import ContextLearner
from clip_peft.parts.views import OfViews, surest, tuned


class TunedPrompt(OfViews, ContextLearner):
    """`method` has `confident`, `lr` and `steps`; the contexts of a batch go through the text tower together."""

    def __init__(self, clip: Clip, method: Any, names: Sequence[str], context: Tensor):
        super().__init__(clip, method, names, context)
        self.context.requires_grad_(False)

    def chosen(self, logits: Annotated[Tensor, "B V C"]) -> Annotated[Tensor, "B K"]:
        """The views whose mean prediction is made surer."""
        return surest(logits, self.method.confident)

    def logits(self, features: Tensor, weights: Tensor | None = None) -> Tensor:
        """B C of the first views, from B V E."""
        f, method = self.views_of(features), self.method
        kept = self.chosen(self.clip.compare(f, self.weights()))
        context = tuned(self.context[None], self._texts, self.clip.compare, f, kept, method.lr, method.steps)
        return self.clip.compare(f[:, :1], self._texts(context))[:, 0]

    def _texts(self, context: Tensor) -> Tensor:
        return F.normalize(self.text_pass(context), dim=-1)  # B C E
