"""Several data sets in one run, with a head each: the rows of one linear layer, of which a picture sees those of its own."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from peft_data.base import ClassificationData
from peft_data.batches import Batch
from peft_data.several import SeveralData, one_at_a_time
from torch import Tensor, nn

from peft_core import lifecycle
from peft_core.errors import PeftError, nearest
from peft_core.jobs.reports.scores import Scores, sure
from peft_core.jobs.runs.predictions import Prediction, predictions
from vision_peft.tasks.classify import Classes, Counted


class Several(Classes):
    """Args:
    parts: of each data set its name and how many classes it has.
    temperature: of the draws of batches.
    chosen: the one that predictions are of.
    """

    name, classes, reads = "several", False, "classify"
    no_export = "it is of several data sets, and one graph tells the classes of one; use `predict --task`"

    def __init__(
        self, class_names: Sequence[str], parts: Sequence[Sequence[Any]], smoothing: float = 0.0, temperature: float = 10.0,
        chosen: str | None = None,
    ) -> None:  # fmt: skip
        super().__init__(class_names, smoothing)
        self.parts_of = [(str(name), int(count)) for name, count in parts]
        self.tasks, self.temperature, self.chosen = tuple(name for name, _ in self.parts_of), temperature, chosen
        stops = torch.tensor([count for _, count in self.parts_of]).cumsum(0).tolist()
        self.spans = dict(zip(self.tasks, zip([0, *stops[:-1]], stops, strict=True), strict=True))

    @classmethod
    def of(cls, data: ClassificationData, settings: Mapping[str, Any]) -> Several:
        assert isinstance(data, SeveralData)
        return cls(data.class_names, data.parts, settings["label_smoothing"], data.temperature)

    @classmethod
    def of_card(cls, card: Mapping[str, Any]) -> Several:
        return cls(card["class_names"], card["parts"])

    @property
    def flags(self) -> str:
        return f" --task {shlex.quote(self.tasks[0])}"

    def card(self) -> dict[str, Any]:
        return {"task": self.name, "parts": [list(part) for part in self.parts_of]}

    def choose(self, name: str, model: nn.Module) -> Several:
        if name not in self.spans:
            raise PeftError(
                f'this run has no data set "{name}"{nearest(name, self.tasks)} (it has: {", ".join(self.tasks)}).'
            )
        lifecycle.serve(model, name)
        return Several(self.class_names, self.parts_of, self.smoothing, self.temperature, name)

    # ---- training and scoring --------------------------------------------------------------------------------------

    def draw(self, labels: Tensor, seed: int) -> Callable[[int, int], Tensor]:
        return one_at_a_time(labels, [count for _, count in self.parts_of], self.temperature, seed)

    def shares(self, model: nn.Module, batch: Batch) -> Iterator[Batch]:
        for name, (start, stop) in self.spans.items():
            rows = ((batch.labels >= start) & (batch.labels < stop)).nonzero().flatten()
            if not len(rows):
                continue
            lifecycle.serve(model, name)
            yield batch if len(rows) == len(batch.labels) else Batch(*(each[rows.to(each.device)] for each in batch))

    def span(self, labels: Tensor) -> tuple[int, int]:
        """The outputs of the data set that these labels are of."""
        first = int(labels[0])
        return next((start, stop) for start, stop in self.spans.values() if first < stop)

    def loss(self, outputs: Tensor, labels: Tensor) -> Tensor:
        start, stop = self.span(labels)
        return F.cross_entropy(outputs[:, start:stop].float(), labels - start, label_smoothing=self.smoothing)

    def right(self, outputs: Tensor, labels: Tensor) -> Tensor:
        start, stop = self.span(labels)
        return (outputs.detach()[:, start:stop].argmax(-1) == labels - start).sum()

    def meter(self) -> Counted:
        return Within(self)

    def figures(self, scores: Scores | None) -> dict[str, Any]:
        each: dict[str, float | None] = dict.fromkeys(self.spans)
        if scores is not None:
            for name, (start, stop) in self.spans.items():
                own = scores.confusion[start:stop]
                each[name] = (own[:, start:stop].trace() / own.sum()).item() if own.sum() else None
        return super().figures(scores) | {"per_data": each}

    @classmethod
    def words(cls, results: Mapping[str, Any]) -> str:
        each = [
            f"{name} {'-' if value is None else f'{value:.4f}'}" for name, value in results.get("per_data", {}).items()
        ]
        return f"{super().words(results)} over all" + (f" ({', '.join(each)})" if each else "")

    # ---- in use ----------------------------------------------------------------------------------------------------

    def predictions(self, outputs: Tensor) -> Iterator[Prediction]:
        start, stop = self._chosen()
        return predictions(outputs[:, start:stop], self._names())

    def cells(self, prediction: Prediction, top: int) -> list[tuple[str, ...]]:
        return prediction.cells(self._names(), top)

    def finished(self, outputs: Tensor) -> Tensor:
        start, stop = self._chosen()
        return outputs[:, start:stop].softmax(-1)

    def line(self, outputs: str) -> str:
        likeliest = "names[start:stop][y[0, start:stop].argmax()]"
        return f"{{name: {likeliest} for y in [{outputs}] for name, (start, stop) in {self.spans}.items()}}"

    def _chosen(self) -> tuple[int, int]:
        if self.chosen is None:
            raise PeftError(
                f"this run has several data sets, with a head each: `predict` says which by --task ({', '.join(self.tasks)}), "
                "and `merge` writes all of them."
            )
        return self.spans[self.chosen]

    def _names(self) -> list[str]:
        start, stop = self._chosen()
        return [name.removeprefix(f"{self.chosen}: ") for name in self.class_names[start:stop]]


class Within(Counted):
    """Counts what is likeliest among the classes of the picture's own data set."""

    def __init__(self, task: Several) -> None:
        super().__init__(task.width)
        self.task = task

    def found(self, outputs: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        start, stop = self.task.span(labels)
        predicted, probability = sure(outputs[:, start:stop])
        return predicted + start, probability


TASK = Several
