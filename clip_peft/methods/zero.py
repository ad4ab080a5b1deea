from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from clip_peft.frozen import Clip
from clip_peft.learner import Learner, OpenVocabularyMethod, TemplateLearner
from clip_peft.parts.views import OfViews, Part, Views, entropy
from clip_peft.text.templates import DEFAULT


@dataclass(frozen=True, kw_only=True)
class Zero(OpenVocabularyMethod):
    """ZERO: the surest of a picture's views vote, each for one class (temperature → 0); no gradient.

    Farina et al., "Frustratingly Easy Test-Time Adaptation of Vision-Language Models", NeurIPS 2024; FarinaMatteo/zero. The
    share `confident` of the views with the lowest entropy votes; of classes with as many votes wins the one for which the
    surest of the other views that names one of them votes, else the one that the first of these finds likelier, and gets a vote
    more. Logits are the logarithms of the shares of votes.

    Args:
        confident: share of the views that votes, at least one.
        views: V, which scoring and predicting make of a picture: itself and random crops, mirrored or not.
        template: of the class texts (see zero_shot).
    """

    confident: Part = 0.3
    views: Views = 64
    template: str | Sequence[str] = DEFAULT
    no_class_weights: ClassVar[str | None] = "several views of each picture vote"
    of_pictures: ClassVar[bool] = True
    vit_b16: ClassVar[tuple[tuple[dict[str, Any], int], ...]] = (({}, 0),)

    def learner(self, clip: Clip, names: Sequence[str]) -> Learner:
        return _Zero(clip, self, names)


class _Zero(OfViews, TemplateLearner):
    @torch.no_grad()
    def logits(self, features: Tensor, weights: Tensor | None = None) -> Tensor:
        """B C from B V E."""
        counted = votes(self.clip.compare(self.views_of(features), self.weights()), self.method.confident)
        return (counted / counted.sum(-1, keepdim=True)).clamp(min=torch.finfo(counted.dtype).tiny).log()


def votes(logits: Annotated[Tensor, "B V C"], share: float) -> Annotated[Tensor, "B C"]:
    """B C: of the surest views among logits B V C; a tie that is broken gives its winner one more."""
    logits = logits.float() if logits.dtype != torch.float64 else logits
    order = entropy(logits.log_softmax(-1)).argsort(dim=-1, stable=True)
    logits = logits.gather(1, order[..., None].expand_as(logits))
    count, named = max(1, int(logits.shape[1] * share)), logits.argmax(-1)
    counted = F.one_hot(named[:, :count], logits.shape[-1]).sum(1).to(logits.dtype)
    first = counted == counted.max(-1, keepdim=True).values
    others = logits[:, count:] if logits.shape[1] > count else logits[:, -1:]
    winner = others[:, 0].masked_fill(~first, -torch.inf).argmax(-1)
    breaks = first.gather(1, others.argmax(-1))  # B V−K: whether a view names one of them
    earliest = others.argmax(-1).gather(1, breaks.int().argmax(-1, keepdim=True))[:, 0]
    winner = torch.where(breaks.any(-1), earliest, winner)
    return counted + F.one_hot(winner, logits.shape[-1]) * (first.sum(-1, keepdim=True) > 1)
