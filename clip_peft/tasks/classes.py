"""One class a picture: accuracy, calibration, and what the run leaves of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from peft_data.base import ClassificationData
from torch import Tensor

from clip_peft.training.choosing import choose
from clip_peft.training.evaluate import figures, score, zero_shot
from clip_peft.training.features import Encoder
from clip_peft.training.twice import same_in_two_classes
from peft_core.jobs.reports.remarks import remarks
from peft_core.jobs.reports.scores import Scores
from peft_core.jobs.runs.predictions import Prediction, as_classes, predictions
from peft_core.jobs.runs.saying import sure_words


class Classes:
    """Args: class_names: what the logits' columns stand for."""

    name, beside = "classify", "zero_shot_accuracy"
    columns = ("class", "probability")
    kept = ("accuracy", "ece")
    """Of the figures, those that an adapter's card has."""
    calibrates = False
    """Whether it chooses something on val whatever the method."""
    top = 5
    """How many of them `predict` tells of a picture."""

    def __init__(self, class_names: Sequence[str]) -> None:
        self.class_names = tuple(class_names)

    @classmethod
    def of_card(cls, card: Mapping[str, Any]) -> Classes:
        return cls(card["class_names"])

    def renamed(self, class_names: Sequence[str], places: Sequence[int] | None = None) -> Classes:
        """The same for other names; `places` are theirs among those that there were, if they were there."""
        return Classes(class_names)

    def notes(self, data: ClassificationData) -> list[str]:
        twice = same_in_two_classes(data.train)
        return [twice] if twice else []

    # ---- figures ---------------------------------------------------------------------------------------------------

    def scores(self, encoder: Encoder, pictures: Any, columns: Sequence[int] | None = None) -> Scores:
        return score(encoder, pictures, len(self.class_names), columns)

    def on_the_way(self, encoder: Encoder, val: Any) -> dict[str, float]:
        return {"accuracy": self.scores(encoder, val).accuracy}

    def choose(self, encoder: Encoder, val: Any) -> dict[str, Any]:
        """What the learner's `choices` are found to be on val."""
        whole, features = encoder.whole, encoder.views(val, [None])[0].to(encoder.device)
        return choose(whole, [(whole.learner.eval(), features, val.labels.to(encoder.device))], "val")

    def zero_shot(self, encoder: Encoder, pictures: Any, template: Any = None) -> float:
        return zero_shot(encoder, pictures, template)

    def figures(self, scores: Scores | None, pictures: Any) -> dict[str, Any]:
        if scores is None:
            return {"accuracy": None, "interval": None, "ece": None, "per_class": {}, "bins": []}
        return {"interval": scores.interval, **figures(scores, pictures, self.class_names)}

    # ---- words -----------------------------------------------------------------------------------------------------

    def remarks(
        self, whole: Any, scores: Any, results: Mapping[str, Any], history: Sequence[dict[str, float]]
    ) -> list[str]:
        learnt = whole.trainable() or hasattr(whole.learner, "remember")
        beside = results[self.beside] if learnt else None
        return remarks(scores, history, self.class_names, zero_shot=beside, epochs=results["epoch"])

    def card(self) -> dict[str, Any]:
        return {}  # as cards of before there were other tasks

    def write(self, run: Any) -> dict[str, Any]:
        from clip_peft.training.results import write_outcome  # with what plots, which a run in use must not wait for

        return write_outcome(run)

    @staticmethod
    def words(results: Mapping[str, Any]) -> str:
        zero = results.get("zero_shot_accuracy")
        beside = "" if zero is None else f", zero-shot {zero:.4f}"
        return f"accuracy {results['accuracy']:.4f}{sure_words(results)}{beside}, ECE {results['ece']:.4f}"

    # ---- predictions -----------------------------------------------------------------------------------------------

    def predictions(self, logits: Tensor) -> Iterator[Prediction]:
        yield from predictions(logits, self.class_names)

    def cells(self, prediction: Prediction, top: int) -> list[tuple[str, ...]]:
        return prediction.cells(self.class_names, top)

    def listed(self, cells: Sequence[Sequence[str]]) -> dict[str, Any]:
        return as_classes(self.columns, cells)

    def finished(self, logits: Tensor) -> Tensor:
        """Logits as probabilities."""
        return logits.softmax(-1)
