"""Folders of pictures and of masks with the same names (`peft_data.annotations.beside`)."""

from __future__ import annotations

from pathlib import Path

from peft_data.annotations.beside import given_pairs, places_in
from peft_data.base import ClassificationData
from peft_data.segment.layouts import ALSO, classes_in, segmentation

NAMES: dict[str, str] = {}
MASKS = ("masks", "mask", "labels", "annotations", "segmentation", "gt")


def claims(path: Path) -> bool:
    """Whether it is a folder with folders of pictures and masks, itself or its folders for the splits."""
    return path.is_dir() and bool(places_in(path, MASKS)) and not (path / "images" / "training").is_dir()


def load(name: str, root: str | None, seed: int, *, val: float = 0.2, test: float = 0.2) -> ClassificationData:
    """The folder `root`. Masks of one channel (or with a palette) hold the class of each pixel, 255 does not count; masks in
    colours need classes.txt in `root`, a line `name red green blue` a class. It may name the classes of others, too, a line each.

    Args:
        val, test: their parts, where there are no splits.

    Raises:
        DataError: a picture without a mask, a mask of another size, or a colour that is no class.
    """
    folder = Path(root or name).resolve()
    parts = given_pairs(places_in(folder, MASKS), ALSO)
    return segmentation(name, folder, parts, *classes_in(folder), val, test, seed)
