"""A class for every pixel: cross-entropy, mean intersection over union, pixel accuracy."""

from __future__ import annotations

import colorsys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from peft_data.batches import Batch
from peft_data.segment.masks import IGNORED
from PIL import Image
from torch import Tensor

from peft_core.jobs.reports import page, plots
from peft_core.jobs.reports.classified import Finished
from peft_core.jobs.reports.scores import by_name, numbers
from vision_peft.dense.model import resized
from vision_peft.dense.pixels import Pixels
from vision_peft.tasks.base import Meter
from vision_peft.tasks.outcome import write

SHOWN = 24


class MaskScores(NamedTuple):
    """Of one pass over a split: the confusion of pixels `C C` (rows are true classes), and some predicted masks by their row."""

    confusion: Tensor
    masks: Mapping[int, Tensor]

    @property
    def unions(self) -> Tensor:
        """IoU of each class, `C`: hits / (true + predicted − hits); NaN where neither is there."""
        hits = self.confusion.diagonal().double()
        return hits / (self.confusion.sum(0) + self.confusion.sum(1) - hits)

    @property
    def value(self) -> float:
        """mIoU: the mean over classes that are there or predicted."""
        return self.unions.nanmean().item()

    @property
    def accuracy(self) -> float:
        return (self.confusion.trace() / self.confusion.sum().clamp(min=1)).item()


class Pixelwise(Meter):
    """The confusion of all pixels, and the masks of the first pictures of this process."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        from torchmetrics.classification import MulticlassConfusionMatrix

        self.confusion, self.masks = MulticlassConfusionMatrix(classes, ignore_index=IGNORED), {}

    def update(self, outputs: Tensor, batch: Batch) -> None:
        predicted = numbers(outputs).argmax(1)
        self.confusion.update(predicted, batch.labels.to(predicted.device).long())
        for row, mask in zip(batch.indices.tolist(), predicted, strict=True):
            if len(self.masks) < SHOWN:
                self.masks[row] = mask.to(torch.uint8).cpu()

    def scores(self) -> MaskScores:
        scores = MaskScores(self.confusion.compute().cpu(), dict(self.masks))
        self.confusion.reset()
        self.masks.clear()
        return scores


class Segment(Pixels):
    """Mean over pixels that count of −log softmax(z)_y, the outputs at the pictures' size."""

    name, score = "segment", "mIoU"
    part: ClassVar[str] = "iou"

    def maps(self, data: Any, rows: Sequence[int], size: tuple[int, int]) -> Tensor:
        return data.masks.at(rows, size, self.width)

    def loss(self, outputs: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(outputs.float(), labels.long(), ignore_index=IGNORED)

    def meter(self) -> Pixelwise:
        return Pixelwise(self.width)

    def figures(self, scores: MaskScores | None) -> dict[str, Any]:
        return {"mIoU": None} if scores is None else {"mIoU": scores.value, "pixel_accuracy": scores.accuracy}

    def parts(self, scores: MaskScores | None) -> dict[str, Any]:
        if scores is None:
            return {}
        true = scores.confusion.sum(1)
        accuracy = scores.confusion.diagonal().double() / true
        return by_name(self.class_names, {"iou": scores.unions, "accuracy": accuracy, "pixels": true})

    @classmethod
    def words(cls, results: Mapping[str, Any]) -> str:
        return f"mIoU {results['mIoU']:.4f}, pixel accuracy {results['pixel_accuracy']:.4f}"

    def remarks(self, scores: MaskScores | None, history: Sequence[Mapping[str, Any]], **known: Any) -> list[str]:
        if scores is None:
            return []
        true, said = scores.confusion.sum(1), scores.confusion.sum(0)
        silent = [name for row, name in enumerate(self.class_names) if true[row] and not said[row]]
        none = [name for row, name in enumerate(self.class_names) if not true[row]]
        found = [f"never predicted, though pixels have it: {', '.join(silent[:5])}"] if silent else []
        return found + (
            [f"no scored pixel has {', '.join(none[:5])}: mIoU is the mean of the other classes"] if none else []
        )

    def write(self, run: Finished) -> dict[str, Any]:
        run.results["per_class"] = parts = self.parts(run.scores)
        if run.scores is None:
            return write(run, self)
        confusion = plots.confusion(run.scores.confusion, self.class_names)
        sections = [
            ("Pictures: as they are, the mask, what was predicted", self._overlays(run)),
            ("Each class", page.each_class(parts, ["class", "IoU", "accuracy", "pixels"])),
            ("Confusion of pixels", page.figure(confusion, "confusion matrix")),
        ]
        return write(run, self, {"confusion.png": confusion}, sections)

    def _overlays(self, run: Finished) -> str:
        pictures, table, cells = run.pictures, np.array(palette(len(self.class_names)), np.uint8).reshape(-1, 3), []
        assert pictures is not None
        for row, mask in sorted(run.scores.masks.items()):  # type: ignore[union-attr]
            own = pictures.images[row].permute(1, 2, 0).numpy()
            true = pictures.labels[row].numpy()
            shown = [
                own,
                *(_over(own, each, table) for each in (true, np.where(true == IGNORED, IGNORED, mask.numpy()))),
            ]
            right = float((mask.numpy() == true)[true != IGNORED].mean()) if (true != IGNORED).any() else 1.0
            cells.append(
                (Image.fromarray(np.concatenate(shown, 1)), f"{pictures.names[row]}: {100 * right:.0f} %", False)
            )
        return page.picture_grid(cells, wide=True)

    def predictions(self, outputs: Tensor) -> Iterator[Tensor]:
        yield from numbers(outputs).cpu()

    def picture(self, prediction: Tensor, size: tuple[int, int]) -> Image.Image:
        mask = Image.fromarray(resized(prediction[None], size)[0].argmax(0).to(torch.uint8).numpy(), mode="P")
        mask.putpalette(palette(len(self.class_names)))
        return mask

    def finished(self, outputs: Tensor) -> Tensor:
        return outputs.softmax(1)


def palette(classes: int) -> list[int]:
    """Red, green and blue of each class, one behind the other: class 0 black, the others around the circle of hues."""
    colours = [colorsys.hsv_to_rgb(0.61803 * row % 1, 0.75, 0.95 - 0.3 * (row % 2)) for row in range(classes - 1)]
    return [0, 0, 0, *(round(255 * value) for colour in colours for value in colour)]


def _over(picture: np.ndarray, mask: np.ndarray, table: np.ndarray) -> np.ndarray:
    """The mask's colours over the picture, its outlines white."""
    known = mask != IGNORED
    tint = np.where(known[..., None], table[np.where(known, mask, 0)], 128)
    mixed = (0.4 * picture + 0.6 * tint).astype(np.uint8)
    edge = np.zeros_like(known)
    edge[:, :-1] |= mask[:, 1:] != mask[:, :-1]
    edge[:-1] |= mask[1:] != mask[:-1]
    mixed[edge] = 255
    return mixed


TASK = Segment
