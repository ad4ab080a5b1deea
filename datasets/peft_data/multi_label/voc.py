"""Image-level labels of Pascal VOC: what a picture has an object of; what has difficult ones alone is not known (-1)."""

from __future__ import annotations

from pathlib import Path

from peft_data.annotations import voc
from peft_data.annotations.base import classes_of
from peft_data.base import ClassificationData
from peft_data.multi_label.presence import presence

NAMES: dict[str, str] = {}
claims = voc.claims


def load(name: str, root: str | None, seed: int, *, val: float = 0.2, test: float = 0.2) -> ClassificationData:
    """The folder `root` (`peft_data.annotations.voc`).

    Args:
        val, test: their parts, where ImageSets/Main has no lists.

    Raises:
        DataError: a damaged or missing file.
    """
    place = Path(root or name).resolve()
    parts = voc.read(place)
    return presence(name, place, parts, classes_of(parts), val, test, seed)
