"""Folders of pictures and of masks with the same names, the splits inside or around them.

data/images/train/1.jpg  data/masks/train/1.png     or     data/train/images/1.jpg  data/train/masks/1.png     or no splits
"""

from __future__ import annotations

from pathlib import Path

from peft_data.base import ClassificationData
from peft_data.errors import DataError
from peft_data.segment.layouts import Pair, classes_in, pairs_in, segmentation
from peft_data.splits import split_of
from peft_data.walk import folders_in

NAMES: dict[str, str] = {}
PICTURES, MASKS = ("images", "image", "imgs", "img", "pictures"), (
    "masks", "mask", "labels", "annotations", "segmentation", "gt",
)  # fmt: skip


def claims(path: Path) -> bool:
    """Whether it is a folder with folders of pictures and masks, itself or its folders for the splits."""
    return path.is_dir() and bool(_places(path)) and not (path / "images" / "training").is_dir()


def _two(folder: Path) -> tuple[Path, Path] | None:
    names = {each.name.lower(): each for each in folders_in(folder)}
    pictures, masks = (next((names[word] for word in words if word in names), None) for words in (PICTURES, MASKS))
    return (pictures, masks) if pictures and masks else None


def _places(folder: Path) -> dict[str, tuple[Path, Path]]:
    """Split → folders of pictures and masks; `train` alone where there are no splits."""
    if two := _two(folder):
        inside = {split: each for each in folders_in(two[0]) if (split := split_of(each.name))}
        if "train" not in inside:
            return {"train": two}
        return {split: (each, two[1] / each.name) for split, each in inside.items()}
    around = {split: two for each in folders_in(folder) if (split := split_of(each.name)) and (two := _two(each))}
    return around if "train" in around else {}


def load(name: str, root: str | None, seed: int, *, val: float = 0.2, test: float = 0.2) -> ClassificationData:
    """The folder `root`. Masks of one channel (or with a palette) hold the class of each pixel, 255 does not count; masks in
    colours need classes.txt in `root`, a line `name red green blue` a class. It may name the classes of others, too, a line each.

    Args:
        val, test: their parts, where there are no splits.

    Raises:
        DataError: a picture without a mask, a mask of another size, or a colour that is no class.
    """
    folder = Path(root or name).resolve()
    parts: dict[str, list[Pair]] = {}
    places = _places(folder)
    for split in ("train", "val", "test"):
        if place := places.get(split):
            if not place[1].is_dir():
                raise DataError(f"{place[0]} has no folder of masks beside it: put them into {place[1]}")
            parts[split] = pairs_in(*place)
    return segmentation(name, folder, parts, *classes_in(folder), val, test, seed)
