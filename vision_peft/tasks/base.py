"""What every task says of itself; the job, the run folder and the commands ask nothing else of it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from peft_data.base import ClassificationData
from peft_data.batches import Batch
from torch import Tensor, nn

from peft_core.errors import PeftError
from peft_core.jobs.hub.backbone import Backbone
from peft_core.jobs.reports.classified import Finished
from peft_core.jobs.reports.scores import numbers
from peft_core.jobs.runs.predictions import as_classes


class Meter(nn.Module):
    """What is kept of each scored batch, over all processes."""

    def update(self, outputs: Tensor, batch: Batch) -> None:
        raise NotImplementedError

    def scores(self) -> Any:
        """What was scored since the last time; it has `value`, the task's one figure."""
        raise NotImplementedError


class Rows(Meter):
    """Outputs `N K` and labels `N L` of every scored picture, in the split's order; `make` makes the scores of them."""

    def __init__(self, make: Callable[[Tensor, Tensor], Any]) -> None:
        super().__init__()
        from torchmetrics import CatMetric  # which a finished run in use must not wait for

        self.make, self.seen, self.width = make, CatMetric(), 0

    def update(self, outputs: Tensor, batch: Batch) -> None:
        outputs, labels = numbers(outputs), batch.labels.reshape(len(batch.labels), -1)
        self.width = outputs.shape[1]
        self.seen.update(torch.cat([batch.indices.to(outputs)[:, None], outputs, labels.to(outputs)], 1))

    def scores(self) -> Any:
        seen = collected(self.seen)
        return self.make(seen[:, 1 : 1 + self.width], seen[:, 1 + self.width :])


def collected(seen: Any) -> Tensor:
    """The rows that a `CatMetric` kept, ordered by their first number, the picture's; it is empty then."""
    rows = seen.compute()
    seen.reset()
    return rows[rows[:, 0].argsort()].cpu()


class Task(ABC):
    """Args: class_names: what the outputs are called."""

    name: ClassVar[str]
    score: ClassVar[str]
    """What its one figure is called in the results; the higher the better."""
    columns: ClassVar[tuple[str, ...]] = ("class", "probability")
    """Of what `predict` prints of a picture, after its path."""
    output: ClassVar[str] = "probability"
    """What an exported model gives."""
    writes: ClassVar[bool] = False
    """Whether `predict` writes a file a picture, by `write_predictions`."""
    pixels: ClassVar[str] = ""
    """The sides that its outputs have besides B and K: ` H W`."""
    classes: ClassVar[bool] = False
    """Whether each picture has one class."""
    part: ClassVar[str] = ""
    """Of what `parts` says of a class, the figure that is printed."""
    no_export: ClassVar[str] = ""
    """Why one graph with one set of outputs cannot stand for it."""
    reads: ClassVar[str] = ""
    """The task that its data are read for, where it is another."""
    calibrates: ClassVar[bool] = False
    """Whether it chooses something on val, which then is not trained on."""

    def __init__(self, class_names: Sequence[str]) -> None:
        self.class_names = tuple(class_names)
        self.tasks: tuple[str, ...] = ()  # names of the data sets that a run is of, where there are several

    @classmethod
    def of(cls, data: ClassificationData, settings: Mapping[str, Any]) -> Task:
        """The task of a run that begins."""
        return cls(data.class_names)

    @classmethod
    def of_card(cls, card: Mapping[str, Any]) -> Task:
        """The task of a finished run."""
        return cls(card["class_names"])

    def card(self) -> dict[str, Any]:
        """What the adapter's card keeps of it, beside the class names."""
        return {"task": self.name}

    def how_to_load(self, name: str, arguments: Mapping[str, Any], transform: str, file: Path, model: Any) -> str:
        """Python that runs merged weights, where they are not a plain timm model's.

        Args:
            name, arguments: of the backbone, as timm.create_model takes them.
            transform: arguments of timm.data.create_transform.
        """
        return ""

    def line(self, outputs: str) -> str:
        """Python that says what the outputs of one picture, written as `outputs`, mean; `names` are the classes'."""
        return f"names[{outputs}.argmax()]"

    def choose(self, name: str, model: nn.Module) -> Task:
        """The same for one of several data sets, and the model told of it."""
        raise PeftError(f"this run is of one data set: leave --task {name} out.")

    def draw(self, labels: Tensor, seed: int) -> Callable[[int, int], Tensor] | None:
        """What decides which pictures come in an epoch, in place of a shuffle (`Batches.draw`)."""
        return None

    def shares(self, model: nn.Module, batch: Batch) -> Iterator[Batch]:
        """What of a batch goes through the model at once, one after another."""
        yield batch

    @property
    def flags(self) -> str:
        """What the command that tries `predict` says besides."""
        return " --top 3" if self.classes else ""

    @property
    def width(self) -> int:
        """Outputs of the head."""
        return len(self.class_names)

    def ready(self, pictures: Any, data: ClassificationData) -> Any:
        """Decoded pictures with their labels as tensors, where a split holds them in another form."""
        return pictures

    def augmented(self, augment: Callable, batch: Batch, chance: torch.Generator) -> tuple[Tensor, Tensor]:
        """A training batch's pictures after an augmentation, and their labels."""
        return augment(batch.images, chance), batch.labels

    def model(
        self, load: Callable[..., tuple[nn.Module, Backbone]], settings: Mapping[str, Any]
    ) -> tuple[nn.Module, Backbone]:
        """The model that is adapted, pictures to outputs, made of a backbone that `load(name, outputs, drop_path)` gives."""
        return load(settings["backbone"], self.width, settings["drop_path"])

    @abstractmethod
    def loss(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """The mean loss of a batch's outputs `B K`."""

    def right(self, outputs: Tensor, labels: Tensor) -> Tensor | None:
        """How many of a training batch were right, where that can be counted."""
        return None

    @abstractmethod
    def meter(self) -> Meter:
        """Empty, to score a split with."""

    def calibrate(self, scores: Any) -> None:
        """Chooses, on the scores of val, what it is that `calibrates`."""
        raise NotImplementedError(self.name)

    @abstractmethod
    def figures(self, scores: Any) -> dict[str, Any]:
        """Of a scored split, for the results; without one (None) `score` with nothing."""

    def parts(self, scores: Any) -> dict[str, Any]:
        """The figure of each class, by name."""
        return {}

    @classmethod
    def words(cls, results: Mapping[str, Any]) -> str:
        """The figure in words: `accuracy 0.8123`."""
        return f"{cls.score} {results[cls.score]:.4f}"

    def remarks(self, scores: Any, history: Sequence[Mapping[str, Any]], **known: Any) -> list[str]:
        """Where a run is not what it seems."""
        return []

    @abstractmethod
    def write(self, run: Finished) -> dict[str, Any]:
        """Writes what a finished run leaves; gives the results, completed."""

    @abstractmethod
    def predictions(self, outputs: Tensor) -> Iterator[Any]:
        """What is said of each picture."""

    @abstractmethod
    def cells(self, prediction: Any, top: int) -> list[tuple[str, ...]]:
        """A prediction as rows of `columns`."""

    def listed(self, cells: Sequence[Sequence[str]]) -> dict[str, Any]:
        """The same for JSON."""
        return as_classes(self.columns, cells)

    @abstractmethod
    def finished(self, outputs: Tensor) -> Tensor:
        """Outputs as probabilities, or in the data's own unit."""


def refuse_smoothing(task: str, settings: Mapping[str, Any]) -> None:
    """Raises PeftError: a loss without classes to spread a share over."""
    if settings.get("label_smoothing"):
        raise PeftError(f"--label_smoothing spreads a share over classes, and {task} has none: leave it out.")
