"""What scoring a split of pictures gives."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from peft_core.jobs.runs.folder import NoNumbers


def sure(logits: Tensor) -> tuple[Tensor, Tensor]:
    """The likeliest class of each row of logits `B C` and its probability.

    Raises:
        NoNumbers: an output is not a number.
    """
    probability, predicted = logits.float().softmax(-1).max(-1)
    return predicted, numbers(probability)


def numbers(outputs: Tensor) -> Tensor:
    """The outputs as float32.

    Raises:
        NoNumbers: one of them is none.
    """
    outputs = outputs.float()
    if not torch.isfinite(outputs).all():
        raise NoNumbers(
            "the model's outputs are no numbers, so there is nothing to score: its training diverged (try a lower --lr), or its "
            "adapter is damaged."
        )
    return outputs


def wilson(right: int, total: int) -> tuple[float, float]:
    """Within which a share lies, with 95 %, of which `right` of `total` were seen: Wilson's interval
    (p + z²/2n ± z √(p (1 − p)/n + z²/4n²)) / (1 + z²/n), z = 1.96."""
    n, z = max(1, total), 1.96
    p = right / n
    middle, half = p + z**2 / (2 * n), z * math.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    return max(0.0, (middle - half) / (1 + z**2 / n)), min(1.0, (middle + half) / (1 + z**2 / n))


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
    def value(self) -> float:
        """The figure by which a run is judged."""
        return self.accuracy

    @property
    def interval(self) -> tuple[float, float]:
        """Within which the accuracy on endless pictures like these lies, with 95 %."""
        return wilson(int(self.confusion.trace()), int(self.confusion.sum()))

    @property
    def per_class(self) -> list[float | None]:
        """Accuracy within each class; None for a class without a picture."""
        pairs = zip(self.confusion.diagonal().tolist(), self.confusion.sum(1).tolist(), strict=True)
        return [right / total if total else None for right, total in pairs]


def by_class(class_names: Sequence[str], scores: Scores | None) -> dict[str, float | None]:
    """Accuracy by class name; a name that stands there twice has its number behind it."""
    if scores is None:
        return {}
    counts = Counter(class_names)
    names = [name if counts[name] == 1 else f"{name} ({number})" for number, name in enumerate(class_names)]
    return dict(zip(names, scores.per_class, strict=True))


def by_name(names: Sequence[str], columns: Mapping[str, Tensor]) -> dict[str, dict[str, float | None]]:
    """Of each class by its name, from a figure of each, `C`, a column; None where a figure is no number."""
    rows = zip(*(each.tolist() for each in columns.values()), strict=True)
    return {
        name: {key: None if value != value else value for key, value in zip(columns, row, strict=True)}
        for name, row in zip(names, rows, strict=True)
    }
