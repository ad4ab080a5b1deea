"""Pascal VOC's masks: JPEGImages, SegmentationClass (palette files), and lists in ImageSets/Segmentation."""

from __future__ import annotations

from pathlib import Path

from peft_data.annotations.voc import lists, picture_of
from peft_data.base import ClassificationData
from peft_data.errors import DataError, listing
from peft_data.segment.layouts import classes_in, segmentation

NAMES: dict[str, str] = {}
CLASSES = tuple(
    "background aeroplane bicycle bird boat bottle bus car cat chair cow dining_table dog horse motorbike person "
    "potted_plant sheep sofa train tv_monitor".replace("_", "-").split()
)


def claims(path: Path) -> bool:
    """Whether it is a folder with JPEGImages and SegmentationClass."""
    return (path / "JPEGImages").is_dir() and (path / "SegmentationClass").is_dir()


def load(name: str, root: str | None, seed: int, *, val: float = 0.2, test: float = 0.2) -> ClassificationData:
    """The folder `root`. The classes are VOC's 21, or those of classes.txt; 255, their borders, does not count.

    Args:
        val, test: their parts, where ImageSets/Segmentation has no lists.

    Raises:
        DataError: a mask or picture that is not there, or a mask of another size.
    """
    folder = Path(root or name).resolve()
    names = lists(folder, "Segmentation")
    names = names or {"train": sorted(each.stem for each in (folder / "SegmentationClass").glob("*.png"))}
    parts = {
        split: [
            (folder / "JPEGImages" / picture_of(folder, each), folder / "SegmentationClass" / f"{each}.png")
            for each in own
        ]
        for split, own in names.items()
    }
    missing = [str(path) for pairs in parts.values() for pair in pairs for path in pair if not path.is_file()]
    if missing or not parts["train"]:
        raise DataError(
            f"{len(missing)} pictures or masks of {folder} are listed but not there: put them in place{listing(missing)}"
        )
    classes, colours = classes_in(folder)
    return segmentation(name, folder, parts, classes or CLASSES, colours, val, test, seed)
