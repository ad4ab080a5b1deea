"""What a classifier says of a picture, and how that is told."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from torch import Tensor

from peft_core.jobs.reports.scores import sure


class Prediction(NamedTuple):
    """One picture's likeliest class, and the probability of every class, C."""

    class_name: str
    probability: float
    probabilities: Tensor

    def cells(self, class_names: Sequence[str], top: int) -> list[tuple[str, ...]]:
        """The likeliest classes as rows of a table: name, probability."""
        best = self.probabilities.topk(min(top, len(class_names)))
        found = zip(best.values.tolist(), best.indices.tolist(), strict=True)
        return [(class_names[int(index)], f"{probability:.4f}") for probability, index in found]


def predictions(logits: Tensor, class_names: Sequence[str]) -> Iterator[Prediction]:
    """A prediction for each row of logits `B C`.

    Raises:
        NoNumbers: an output is not a number.
    """
    sure(logits)
    for row in logits.float().softmax(-1).cpu():
        best = int(row.argmax())
        yield Prediction(class_names[best], float(row[best]), row)


def as_classes(columns: Sequence[str], cells: Sequence[Sequence[str]]) -> dict[str, Any]:
    """Rows of a table for JSON: `{"classes": [{"class": …, "probability": …}]}`."""
    named = (zip(columns, each, strict=True) for each in cells)
    return {
        "classes": [{name: float(cell) if name == "probability" else cell for name, cell in each} for each in named]
    }
