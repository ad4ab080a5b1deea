"""Boxes: FCOS's losses, COCO's average precision."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from peft_data.batches import Batch
from peft_data.pictures import size_or
from PIL import ImageDraw
from torch import Tensor

from peft_core.errors import PeftError
from peft_core.files import write_files
from peft_core.jobs.reports import page
from peft_core.jobs.reports.classified import Finished
from peft_core.jobs.reports.scores import by_name, numbers
from peft_core.jobs.runs.use import Ready
from vision_peft.dense.boxes import detections, loss
from vision_peft.dense.detector import detector
from vision_peft.dense.precision import BoxScores, scores
from vision_peft.dense.segment import palette
from vision_peft.dense.task import MapsTask, alike
from vision_peft.tasks.base import Rows
from vision_peft.tasks.outcome import write

SHOWN, SURE, WIDE = 24, 0.3, 240
"""Pictures in the report, the least score of what is drawn there, and their width."""


class Found(Rows):
    """The boxes of every scored picture, and its true ones."""

    def update(self, outputs: Tensor, batch: Batch) -> None:
        super().update(detections(numbers(outputs)).flatten(1), batch)


class Detect(MapsTask):
    """(Focal loss + GIoU loss + cross-entropy of centredness) / places that learn a box (`vision_peft.dense.boxes.loss`)."""

    name, score, part = "detect", "AP", "AP"
    no_export: ClassVar[str] = "boxes of one thing are put together outside the network; use `predict`, or `merge`"
    make = staticmethod(detector)

    @property
    def flags(self) -> str:
        return " --out boxes.json"

    def ready(self, pictures: Any, data: Any) -> Any:
        size = (int(pictures.images.shape[-2]), int(pictures.images.shape[-1]))
        return dataclasses.replace(pictures, labels=data.at(pictures.labels.tolist(), size))

    def augmented(self, augment: Any, batch: Batch, chance: torch.Generator) -> tuple[Tensor, Tensor]:
        """Pictures and their boxes, both mirrored or none."""
        sides = torch.tensor([0, 1], device=batch.images.device).expand(len(batch.images), 1, 1, 2)
        images, sides = alike(augment, chance, batch.images, sides)
        turned = (sides[:, 0, 0, :1] == 1) & (batch.labels[..., 0] >= 0)
        boxes = batch.labels.clone()
        boxes[..., 1] = torch.where(turned, images.shape[-1] - batch.labels[..., 3], batch.labels[..., 1])
        boxes[..., 3] = torch.where(turned, images.shape[-1] - batch.labels[..., 1], batch.labels[..., 3])
        return images, boxes

    def loss(self, outputs: Tensor, labels: Tensor) -> Tensor:
        return loss(outputs, labels)

    def meter(self) -> Rows:
        def made(found: Tensor, true: Tensor) -> BoxScores:
            return scores(found.view(len(found), -1, 6), true.view(len(true), -1, 6), self.width)

        return Found(made)

    def figures(self, scores: BoxScores | None) -> dict[str, Any]:
        return {"AP": None} if scores is None else {"AP": scores.value, "AP50": scores.at(slice(0, 1))}

    def parts(self, scores: BoxScores | None) -> dict[str, Any]:
        if scores is None:
            return {}
        each = {"AP": scores.each, "AP50": scores.precisions[:, 0], "boxes": scores.counts}
        return by_name(self.class_names, {key: torch.as_tensor(value) for key, value in each.items()})

    @classmethod
    def words(cls, results: Mapping[str, Any]) -> str:
        return f"AP {results['AP']:.4f}, AP50 {results['AP50']:.4f}"

    def remarks(self, scores: BoxScores | None, history: Sequence[Mapping[str, Any]], **known: Any) -> list[str]:
        if scores is None:
            return []
        none = [name for name, count in zip(self.class_names, scores.counts, strict=True) if not count]
        lines = [f"no scored picture has {', '.join(none[:5])}: AP is the mean of the other classes"] if none else []
        if not bool((scores.found[..., 0] >= 0).any()):
            lines.append("no box was found in any picture: train longer, or at a higher --lr")
        return lines

    def write(self, run: Finished) -> dict[str, Any]:
        run.results["per_class"] = parts = self.parts(run.scores)
        if run.scores is None:
            return write(run, self)
        sections = [
            (f"Pictures: what is there, and what was found with a score from {SURE}", self._overlays(run)),
            ("Each class", page.each_class(parts, ["class", "AP", "AP50", "boxes"])),
        ]
        return write(run, self, {}, sections)

    def _overlays(self, run: Finished) -> str:
        pictures, cells = run.pictures, []
        assert pictures is not None and run.scores is not None
        for row in range(min(SHOWN, len(pictures))):
            found = run.scores.found[row]
            own = pictures.preview(row)
            scale = max(1, WIDE // own.width)
            both = own.resize((2 * own.width * scale, own.height * scale))
            for side, boxes in enumerate((run.scores.true[row], found[found[:, 5] >= SURE])):
                both.paste(self._drawn(own.resize((own.width * scale, own.height * scale)), boxes, scale),
                           (side * own.width * scale, 0))  # fmt: skip
            cells.append((both, pictures.names[row], False))
        return page.picture_grid(cells, wide=True)

    def _drawn(self, picture: Any, boxes: Tensor, scale: int) -> Any:
        draw, colours = ImageDraw.Draw(picture), palette(len(self.class_names) + 1)
        for kind, *sides, _ in boxes[boxes[:, 0] >= 0].tolist():
            number = 3 * (int(kind) + 1)
            colour = tuple(colours[number : number + 3])
            draw.rectangle([each * scale for each in sides], outline=colour, width=2)
            draw.text((sides[0] * scale + 3, sides[1] * scale + 1), self.class_names[int(kind)], fill=colour)
        return picture

    def predictions(self, outputs: Tensor) -> Iterator[Tensor]:
        """Of each picture `n 6`: class, sides as pixels of the model's picture, score."""
        for rows in detections(numbers(outputs)).cpu():
            yield rows[rows[:, 0] >= 0]

    def write_predictions(self, run: Any, paths: Sequence[str], out: str | None, batch_size: int, program: str) -> int:
        """JSON of each picture's boxes in its own pixels, to the file `out` or printed."""
        target = None if out is None else Path(out).expanduser()
        if target is not None and (target.suffix != ".json" or target.is_dir()):
            raise PeftError(f"--out {out} must be a .json file: predict writes the boxes of all pictures into it.")
        ready, found = Ready(run, run.found(paths)), []
        for row, boxes in enumerate(run.stream(ready, batch_size)):
            height, width = size_or(ready.read[row], run.fit.size)
            high, wide = height / run.fit.size[0], width / run.fit.size[1]
            each = [
                {"class": self.class_names[int(kind)], "score": round(score, 4),
                 "box": [round(left * wide, 2), round(top * high, 2), round(right * wide, 2), round(bottom * high, 2)]}
                for kind, left, top, right, bottom, score in boxes.tolist()
            ]  # fmt: skip
            found.append({"path": str(ready.read[row]), "width": width, "height": height, "boxes": each})
        text = json.dumps(found, indent=1, ensure_ascii=False)
        if target is None:
            print(text)
        else:
            write_files(target.parent, {target.name: text.encode()})
            print(f"{target} has the boxes of {len(found)} pictures: left, top, right, bottom in their own pixels")
        return ready.told(program)

    def cells(self, prediction: Tensor, top: int) -> list[tuple[str, ...]]:
        return [(self.class_names[int(row[0])], f"{row[5]:.4f}") for row in prediction.tolist()] or [("", "")]

    def finished(self, outputs: Tensor) -> Tensor:
        return detections(outputs)


TASK = Detect
