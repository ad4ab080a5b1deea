"""A number a picture: squared error of what is standardised by the training pictures; R² and the mean absolute error."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import torch.nn.functional as F
from peft_data.base import ClassificationData
from torch import Tensor

from peft_core.jobs.reports import page, plots
from peft_core.jobs.reports.classified import Finished
from peft_core.jobs.reports.scores import numbers
from peft_core.values import Positive, typed
from vision_peft.tasks.base import Rows, Task, refuse_smoothing
from vision_peft.tasks.outcome import write


class NumberScores(NamedTuple):
    """Of one pass over a split: predicted and true numbers, float64 `N`."""

    predicted: Tensor
    true: Tensor

    @property
    def value(self) -> float:
        """R² = 1 − Σ (y − ŷ)² / Σ (y − ȳ)²; NaN where all are alike."""
        spread = (self.true - self.true.mean()).square().sum()
        return (1 - (self.true - self.predicted).square().sum() / spread).item() if spread > 0 else math.nan

    @property
    def error(self) -> float:
        """The mean absolute error."""
        return (self.true - self.predicted).abs().mean().item()


class Numbers(Task):
    """Mean over pictures of (z − (y − μ) / σ)²; a prediction is σ z + μ, with μ and σ of the training pictures.

    Args:
        centre, spread: μ and σ.
    """

    name, score, output = "regression", "r2", "value"
    columns: ClassVar[tuple[str, ...]] = ("value",)

    def __init__(self, class_names: Sequence[str], centre: float, spread: float) -> None:
        super().__init__(class_names)
        self.centre, self.spread = centre, spread

    @classmethod
    def of(cls, data: ClassificationData, settings: Mapping[str, Any]) -> Numbers:
        refuse_smoothing(cls.name, settings)
        labels = data.train.labels.double()
        return cls(data.class_names, labels.mean().item(), labels.std(correction=0).item())

    @classmethod
    def of_card(cls, card: Mapping[str, Any]) -> Numbers:
        kinds = {"target_mean": float, "target_std": Positive}
        found = (typed(card.get(key), kind, f"{key} in the adapter's card") for key, kind in kinds.items())
        return cls(card["class_names"], *found)

    def card(self) -> dict[str, Any]:
        return super().card() | {"target_mean": self.centre, "target_std": self.spread}

    def line(self, outputs: str) -> str:
        return f"{outputs}.item() * {self.spread:.6g} + {self.centre:.6g}"

    def loss(self, outputs: Tensor, labels: Tensor) -> Tensor:
        return F.mse_loss(outputs.float()[:, 0], (labels - self.centre) / self.spread)

    def meter(self) -> Rows:
        return Rows(lambda outputs, labels: NumberScores(self.finished(outputs)[:, 0].double(), labels[:, 0].double()))

    def figures(self, scores: NumberScores | None) -> dict[str, Any]:
        if scores is None:
            return {"r2": None}
        # of predicting the training mean each time
        plain = (scores.true - self.centre).abs().mean().item()
        return {"r2": scores.value, "mae": scores.error, "mae_of_the_mean": plain}

    @classmethod
    def words(cls, results: Mapping[str, Any]) -> str:
        return (
            f"R² {results['r2']:.4f}, mean absolute error {results['mae']:.4g} (of always saying the training mean: "
            f"{results['mae_of_the_mean']:.4g})"
        )

    def remarks(self, scores: NumberScores | None, history: Sequence[Mapping[str, Any]], **known: Any) -> list[str]:
        if scores is None or scores.value > 0:
            return []
        return [
            f"R² is {scores.value:.3f}: no better than always saying the mean; train longer, or look at the numbers"
        ]

    def write(self, run: Finished) -> dict[str, Any]:
        scores, pictures = run.scores, run.pictures
        if scores is None or pictures is None:
            return write(run, self)
        what = self.class_names[0]
        pairs = list(zip(pictures.names, scores.predicted.tolist(), scores.true.tolist(), strict=True))
        rows = [{"path": path, what: said, f"true_{what}": true} for path, said, true in pairs]
        far = (scores.predicted - scores.true).abs().argsort(descending=True)[:24].tolist()
        cells = [(pictures.preview(row), f"{pairs[row][2]:.4g}, said {pairs[row][1]:.4g}", False) for row in far]
        against = plots.against(scores.true.tolist(), scores.predicted.tolist(), what)
        sections = [
            ("Predicted against true", page.figure(against, "predicted against true")),
            ("Pictures, the farthest off first", page.picture_grid(cells)),
        ]
        return write(run, self, {"predictions.csv": page.csv_bytes(rows)}, sections)

    def predictions(self, outputs: Tensor) -> Iterator[float]:
        yield from self.finished(numbers(outputs))[:, 0].tolist()

    def cells(self, prediction: float, top: int) -> list[tuple[str, ...]]:
        return [(f"{prediction:.6g}",)]

    def listed(self, cells: Sequence[Sequence[str]]) -> dict[str, Any]:
        return {self.class_names[0]: float(cells[0][0])}

    def finished(self, outputs: Tensor) -> Tensor:
        return outputs * self.spread + self.centre


TASK = Numbers
