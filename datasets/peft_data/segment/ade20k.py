"""ADE20K as the scene parsing challenge has it: images/training, annotations/training, validation beside; 0 does not count."""

from __future__ import annotations

from pathlib import Path

from peft_data.annotations.beside import pairs_in
from peft_data.base import ClassificationData
from peft_data.errors import DataError
from peft_data.segment.layouts import ALSO, classes_in, segmentation
from peft_data.texts import read_lines

NAMES: dict[str, str] = {}


def claims(path: Path) -> bool:
    """Whether it is a folder with images/training and annotations/training."""
    return (path / "images" / "training").is_dir() and (path / "annotations" / "training").is_dir()


def load(name: str, root: str | None, seed: int) -> ClassificationData:
    """The folder `root`: annotations hold 1 to 150, called as objectInfo150.txt (or classes.txt) says; validation is
    the test set.

    Raises:
        DataError: a picture without a mask, or a mask of another size.
    """
    folder = Path(root or name).resolve()
    parts = {
        split: pairs_in(folder / "images" / own, folder / "annotations" / own, ALSO)
        for split, own in (("train", "training"), ("test", "validation"))
        if (folder / "images" / own).is_dir()
    }
    classes, _ = classes_in(folder)
    info = folder / "objectInfo150.txt"
    if not classes and info.is_file():
        rows = [line.split("\t") for _, line in read_lines(info, "ADE20K's names")][1:]
        classes = tuple(row[-1].split(",")[0].strip() for row in rows)
        if len(classes) != 150:
            raise DataError(f"{info} names {len(classes)} classes, and ADE20K has 150: copy it again")
    return segmentation(name, folder, parts, classes, None, 0.2, 0.2, seed, shift=1)
