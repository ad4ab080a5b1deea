"""One class a picture: cross-entropy, accuracy."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from peft_data.base import ClassificationData
from peft_data.batches import Batch
from torch import Tensor

from peft_core.jobs.reports.classified import Finished
from peft_core.jobs.reports.remarks import remarks
from peft_core.jobs.reports.scores import Scores, by_class, sure
from peft_core.jobs.runs.predictions import Prediction, predictions
from vision_peft.results import write_outcome
from vision_peft.tasks.base import Meter, Task, collected


class Counted(Meter):
    """The confusion, and of each picture the class it was given and that one's probability."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        from torchmetrics import CatMetric  # which a finished run in use must not wait for
        from torchmetrics.classification import MulticlassConfusionMatrix

        self.confusion, self.seen = MulticlassConfusionMatrix(classes), CatMetric()

    def update(self, outputs: Tensor, batch: Batch) -> None:
        predicted, probability = self.found(outputs, batch.labels)
        self.confusion.update(predicted, batch.labels.to(predicted.device))
        self.seen.update(torch.stack([batch.indices.to(probability), predicted.float(), probability], 1))

    def found(self, outputs: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """The likeliest class of each picture, and its probability."""
        return sure(outputs)

    def scores(self) -> Scores:
        seen = collected(self.seen)
        scores = Scores(self.confusion.compute().cpu(), seen[:, 1].long(), seen[:, 2])
        self.confusion.reset()
        return scores


class Classes(Task):
    """Args: smoothing: the share of the target that is spread over all classes."""

    name, score, classes = "classify", "accuracy", True

    def __init__(self, class_names: Sequence[str], smoothing: float = 0.0) -> None:
        super().__init__(class_names)
        self.smoothing = smoothing

    @classmethod
    def of(cls, data: ClassificationData, settings: Mapping[str, Any]) -> Classes:
        return cls(data.class_names, settings["label_smoothing"])

    def card(self) -> dict[str, Any]:
        return {}  # as cards of before there were other tasks

    def loss(self, outputs: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(outputs.float(), labels, label_smoothing=self.smoothing)

    def right(self, outputs: Tensor, labels: Tensor) -> Tensor:
        return (outputs.detach().argmax(-1) == labels).sum()

    def meter(self) -> Counted:
        return Counted(self.width)

    def figures(self, scores: Scores | None) -> dict[str, Any]:
        return {"accuracy": scores.accuracy if scores else None, "interval": scores.interval if scores else None}

    def parts(self, scores: Scores | None) -> dict[str, Any]:
        return by_class(self.class_names, scores)

    def remarks(self, scores: Scores | None, history: Sequence[Mapping[str, Any]], **known: Any) -> list[str]:
        return remarks(scores, history, self.class_names, **known)

    def write(self, run: Finished) -> dict[str, Any]:
        return write_outcome(run)

    def predictions(self, outputs: Tensor) -> Iterator[Prediction]:
        return predictions(outputs, self.class_names)

    def cells(self, prediction: Prediction, top: int) -> list[tuple[str, ...]]:
        return prediction.cells(self.class_names, top)

    def finished(self, outputs: Tensor) -> Tensor:
        return outputs.softmax(-1)


TASK = Classes
