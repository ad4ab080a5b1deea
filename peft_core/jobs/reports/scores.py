"""What scoring a split of pictures gives."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from peft_core.jobs.runs.folder import Diverged


def sure(logits: Tensor) -> tuple[Tensor, Tensor]:
    """The likeliest class of each row of logits `B C` and its probability.

    Raises:
        Diverged: an output is not a number.
    """
    probability, predicted = logits.float().softmax(-1).max(-1)
    if not torch.isfinite(probability).all():
        raise Diverged(
            "the model's outputs are no numbers, so there is nothing to score: its training diverged (try a lower --lr), or its "
            "adapter is damaged."
        )
    return predicted, probability


class Scores(NamedTuple):
    """Of one pass over a split: `confusion` C C (rows are the true classes), and for each picture, in the split's
    order, its `predicted` class and that class's `probability`."""

    confusion: Tensor
    predicted: Tensor
    probability: Tensor

    @property
    def accuracy(self) -> float:
        return self.confusion.trace().item() / max(1, self.confusion.sum().item())

    @property
    def per_class(self) -> list[float | None]:
        """Accuracy within each class; None for a class without a picture."""
        pairs = zip(self.confusion.diagonal().tolist(), self.confusion.sum(1).tolist(), strict=True)
        return [right / total if total else None for right, total in pairs]
