"""Boxes of pictures: whether they can be, and data whose pictures have some each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from peft_data.annotations.base import Annotated, split_up
from peft_data.base import ClassificationData, Pictures
from peft_data.errors import DataError, listing
from peft_data.findings import with_findings
from peft_data.pictures import size_or
from peft_data.splits import check_shares

SLACK = 2.0
"""Pixels by which a box may reach beyond its picture, as rounding leaves them; it is cut there."""


@dataclass(frozen=True, eq=False)
class DetectionData(ClassificationData):
    """Pictures with boxes: `labels` of a split are rows of `boxes`.

    Args:
        boxes: of each picture of all splits float32 `n 6`: its class, left, top, right, bottom as parts of the picture's
            width and height, and 1 where it is hard (a crowd, a difficult one), which neither trains nor counts.
    """

    recipe: str | None = "detect"
    boxes: tuple[Tensor, ...] = ()
    task: ClassVar[str] = "detect"

    def counts(self, part: Pictures) -> Tensor:
        found = [self.boxes[row] for row in part.labels.tolist()]
        each = [rows[rows[:, 5] == 0, 0].unique().long() for rows in found]
        return torch.cat([torch.zeros(0, dtype=torch.int64), *each]).bincount(minlength=len(self.class_names))

    def answers(self, part: Pictures) -> bytes:
        return b"\n".join(self.boxes[row].numpy().tobytes() for row in part.labels.tolist())

    def said(self, label: Any) -> str:
        return f"with {len(self.boxes[label])} boxes"

    def check(self) -> None:
        if not self.class_names:
            raise DataError(f"{self.name} has no class of boxes: give it a category, and a box of it")
        if len(self.train) and not any(len(self.boxes[row]) for row in self.train.labels.tolist()):
            raise DataError(f"no training picture of {self.name} has a box: there is nothing to learn")

    def at(self, rows: Sequence[int], size: tuple[int, int]) -> Tensor:
        """Boxes in pixels of pictures of this height and width, float32 `N M 6`, M of the picture with most; -1 where a
        picture has fewer."""
        found = [self.boxes[row] for row in rows]
        out = torch.full((len(found), max([1, *map(len, found)]), 6), -1.0)
        scale = torch.tensor([1, size[1], size[0], size[1], size[0], 1], dtype=torch.float32)
        for each, boxes in zip(out, found, strict=True):
            each[: len(boxes)] = boxes * scale
        return out


def detection(
    name: str, root: Path, parts: Mapping[str, Annotated], classes: Sequence[str], val: float, test: float, seed: int
) -> ClassificationData:
    """The data set of annotated pictures by split; boxes of other classes than these are left out.

    Raises:
        DataError: boxes that reach out of their pictures, or pictures that are not there.
    """
    check_shares(val, test)
    labels, start, kept = {}, 0, []
    for split, part in parts.items():
        labels[split] = range(start, start + len(part.names))
        start += len(part.names)
    three, drawn, notes = split_up(parts, labels, torch.int64, root, val, test, seed, by_class=False)
    where: dict[int, Any] = {
        row: path for part in three for row, path in zip(part.labels.tolist(), part.items, strict=True)
    }
    empty, wrong, row = 0, [], 0
    with ThreadPoolExecutor(8) as threads:
        sizes = list(threads.map(lambda row: size_or(where[row], None), range(start)))  # None: told where it is decoded
    for part in parts.values():
        for things, boxes, hard in zip(part.things, part.boxes, part.hard, strict=True):
            made, outside, none = _parts(boxes, sizes[row])
            if bool(outside.any()):
                wrong.append(f"{where[row]}: {boxes[outside][0].tolist()} in {_said(sizes[row])}")
            number = torch.tensor([classes.index(each) if each in classes else -1 for each in things])
            rows = torch.cat([number[:, None].float(), made, hard[:, None].float()], 1).view(-1, 6)
            kept.append(rows[~none & (number >= 0)])
            empty, row = empty + int(none.sum()), row + 1
    if wrong:
        raise DataError(
            f"{len(wrong)} pictures of {root} have boxes (left, top, right, bottom) that reach out of them: mend or remove them"
            f"{listing(wrong)}"
        )
    if empty:
        notes.append(f"{empty} boxes have no width or no height and are left out")
    data = DetectionData(Path(name).stem, tuple(classes), *three, boxes=tuple(kept))
    return with_findings(data, notes, drawn=drawn)


def _said(size: tuple[int, int] | None) -> str:
    return "a picture that cannot be read" if size is None else f"a picture of {size[1]} × {size[0]} pixels"


def _parts(boxes: Tensor, size: tuple[int, int] | None) -> tuple[Tensor, Tensor, Tensor]:
    """Boxes `n 4` as parts of their picture, cut at its edges; which reach out of it; and which are empty."""
    height, width = size or (1, 1)
    sides = torch.tensor([width, height, width, height], dtype=torch.float32)
    beyond = ((boxes < -SLACK) | (boxes > sides + SLACK)).any(1) if size else torch.zeros(len(boxes), dtype=torch.bool)
    cut = boxes.clamp(min=0).minimum(sides) / sides
    return cut, beyond | ~(boxes[:, 2:] >= boxes[:, :2]).all(1), (cut[:, 2:] <= cut[:, :2]).any(1)
