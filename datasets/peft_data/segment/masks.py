"""Masks: where they lie, what their pixels mean, and data whose pictures have one each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from peft_data.annotations.maps import Maps
from peft_data.base import ClassificationData, Pictures
from peft_data.errors import DataError
from peft_data.pictures import open_picture

IGNORED = 255
"""The index of pixels that do not count."""
Colour = tuple[int, int, int]


@dataclass(frozen=True, eq=False)
class Masks(Maps):
    """The masks of all splits, uint8: classes, and 255 for what does not count.

    Args:
        items: as for `Maps`.
        colours: colour → class, for masks in colours; files of one channel (or a palette) hold the class itself.
        shift: taken from what a file of one channel holds: 1 where it counts classes from 1, and 0 is ignored.
    """

    what: ClassVar[str] = "mask"
    colours: Mapping[Colour, int] | None = None
    shift: int = 0

    def of_file(self, file: Path) -> np.ndarray:
        with open_picture(file) as image:
            image.load()
            return self._classes(image, file)

    def meaning(self) -> Any:
        return self.colours, self.shift

    def _classes(self, image: Image.Image, item: Path) -> np.ndarray:
        if self.colours is None:
            if image.mode not in ("L", "P", "1", "I", "I;16"):
                raise DataError(
                    f"the mask {item} is in colours ({image.mode}): list them in classes.txt beside the folders, "
                    "a line `name red green blue` for each class"
                )
            values = np.asarray(image).astype(np.int64)
            shifted = np.where(values == 0, IGNORED, values - 1) if self.shift else values
            return np.clip(shifted, 0, IGNORED).astype(np.uint8)
        pixels = np.asarray(image.convert("RGB")).astype(np.int64)
        codes = (pixels[..., 0] << 16) | (pixels[..., 1] << 8) | pixels[..., 2]
        found, where = np.unique(codes, return_inverse=True)
        known = {(r << 16) | (g << 8) | b: label for (r, g, b), label in self.colours.items()}
        odd = [code for code in found.tolist() if code not in known]
        if odd:
            shown = ", ".join(f"{code >> 16} {code >> 8 & 255} {code & 255}" for code in odd[:3])
            raise DataError(
                f"the mask {item} has the colour {shown}, which is no class: add it to classes.txt, or mend it"
            )
        return np.array([known[code] for code in found.tolist()], np.uint8)[where].reshape(codes.shape)

    def at(self, rows: Sequence[int], size: tuple[int, int], classes: int, workers: int = 0) -> Tensor:
        """Masks at a size, uint8 `N H W`, each pixel the nearest one's.

        Raises:
            DataError: a mask that cannot be read, or has a class beyond `classes`.
        """

        def checked(row: int) -> np.ndarray:
            mask = self.read(row)
            most = mask[mask != IGNORED].max(initial=0)
            if most >= classes:
                raise DataError(
                    f"the mask {self.name(row)} has the class {int(most) + self.shift}, and there are {classes}: name it in "
                    "classes.txt, or mend the mask"
                )
            return mask

        return self.stacked(checked, rows, size, workers)


@dataclass(frozen=True, eq=False)
class SegmentationData(ClassificationData):
    """Pictures with a class a pixel: `labels` of a split are rows of `masks`."""

    recipe: str | None = "dense"
    masks: Masks = Masks(())
    task: ClassVar[str] = "segment"

    def counts(self, part: Pictures) -> Tensor:
        return torch.full((len(self.class_names),), len(part))

    def answers(self, part: Pictures) -> bytes:
        return self.masks.answers(part.labels)

    def said(self, label: Any) -> str:
        return f"with the mask {self.masks.name(label)}"

    def check(self) -> None:
        if not 2 <= len(self.class_names) <= IGNORED:
            raise DataError(
                f"{self.name} has {len(self.class_names)} classes of pixels: 2 to {IGNORED} can be told apart"
            )


def read_classes(file: Path, text: Sequence[tuple[int, str]]) -> tuple[tuple[str, ...], dict[Colour, int] | None]:
    """Class names, and their colours where the lines end in three numbers: `name` or `name red green blue`, also by commas. A
    class called `ignore` is what does not count.

    Raises:
        DataError: a line that is neither, or a name or a colour that stands there twice.
    """
    names: list[str] = []
    colours: dict[Colour, int] = {}
    rows = [line.replace(",", " ").split() for _, line in text]
    if rows and [word.lower() for word in rows[0][-3:]] in (["r", "g", "b"], ["red", "green", "blue"]):
        rows, text = rows[1:], text[1:]
    coloured = all(len(row) > 3 and all(word.isdigit() and int(word) < 256 for word in row[-3:]) for row in rows)
    for (number, line), row in zip(text, rows, strict=True):
        name = " ".join(row[:-3]) if coloured else line
        if name in names or (coloured and tuple(map(int, row[-3:])) in colours):
            raise DataError(f"line {number} of {file} says {line!r}, whose name or colour stood there before: keep one")
        if coloured:
            colours[tuple(map(int, row[-3:]))] = IGNORED if name == "ignore" else len(names)  # type: ignore[index]
        if name != "ignore":
            names.append(name)
    return tuple(names), colours if coloured else None
