"""Boxes of Pascal VOC's annotations."""

from __future__ import annotations

from pathlib import Path

from peft_data.annotations import voc
from peft_data.annotations.base import classes_of
from peft_data.base import ClassificationData
from peft_data.detect.boxes import detection

NAMES: dict[str, str] = {}
claims = voc.claims


def load(name: str, root: str | None, seed: int, *, val: float = 0.2, test: float = 0.2) -> ClassificationData:
    """The folder `root` (`peft_data.annotations.voc`); difficult objects neither train nor count.

    Args:
        val, test: their parts, where ImageSets/Main has no lists.

    Raises:
        DataError: a damaged or missing file, or boxes out of their pictures.
    """
    place = Path(root or name).resolve()
    parts = voc.read(place)
    return detection(name, place, parts, classes_of(parts), val, test, seed)
