from collections.abc import Sequence
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from clip_peft.learner import Clip, ContextLearner, Learner, OpenVocabularyMethod, start_context
from clip_peft.text.templates import DEFAULT


@dataclass(frozen=True, kw_only=True)
class KgCoOp(OpenVocabularyMethod):
    """KgCoOp: CoOp with loss CE + w · mean_c(1 − cos(t_c, h_c)), h_c the features of hand-written prompts.

    Yao et al., "Visual-Language Prompt Tuning with Knowledge-guided Context Optimization", CVPR 2023; htyao89/KgCoOp.
    2,048 parameters on ViT-B-16.

    Args:
        context: M, the first tokens of `init`.
        init: a text whose token embeddings the context starts from; None for N(0, 0.02²).
        weight: w.
        template: of the hand-written prompts (see zero_shot).
    """

    context: int = 4
    init: str | None = "a photo of a"
    weight: float = 8.0
    template: str | Sequence[str] = DEFAULT

    def learner(self, clip: Clip, names: Sequence[str]) -> Learner:
        start = start_context(clip, self.name, self.context, self.init)
        return _KgCoOp(clip, self, names, start, reference=self.template)


class _KgCoOp(ContextLearner):
    def loss(self, features: Tensor, labels: Tensor, images: Tensor | None = None) -> Tensor:
        texts = self.weights()
        logits = self.clip.compare(features, texts)
        return F.cross_entropy(logits, labels) + self.method.weight * (1 - (texts * self.hand).sum(-1)).mean()
