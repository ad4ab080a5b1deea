"""Boxes of COCO's annotations."""

from __future__ import annotations

from pathlib import Path

from peft_data.annotations import coco
from peft_data.base import ClassificationData
from peft_data.detect.boxes import detection

NAMES: dict[str, str] = {}
claims = coco.claims


def load(name: str, root: str | None, seed: int, *, val: float = 0.2, test: float = 0.2) -> ClassificationData:
    """The annotations in `root`, a file or a folder (`peft_data.annotations.coco`); categories that no training picture has are
    left out, crowds neither train nor count.

    Args:
        val, test: their parts, where there is one file alone.

    Raises:
        DataError: a damaged file, boxes out of their pictures, or pictures that are not there.
    """
    place = Path(root or name).resolve()
    parts = coco.read(place)
    return detection(name, place, parts, coco.used(parts), val, test, seed)
