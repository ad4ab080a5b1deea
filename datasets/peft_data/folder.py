"""Folders of pictures: `train/ val/ test/` with a folder per class in each, or just a folder per class.

photos/train/cat/1.jpg  photos/train/dog/2.png  photos/val/…  photos/test/…        or          photos/cat/1.jpg
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from peft_data import clip_lists, coop, few_shot, fgvc, huggingface, vtab
from peft_data.base import ClassificationData, Pictures, no_pictures
from peft_data.errors import DataError, nearest
from peft_data.findings import same_name, with_findings
from peft_data.pictures import is_picture
from peft_data.splits import check_shares, split_of, tenth_as_val, three_parts
from peft_data.video.decoding import is_video
from peft_data.walk import LeftOut, files_in, folders_in, walk

NAMES: dict[str, str] = {}
MAPS = {
    "segment": ("masks", {"images", "masks", "annotations", "labels", "jpegimages", "segmentationclass"}),
    "depth": ("distances", {"images", "rgb", "depth", "depths", "depth_maps", "depthmaps"}),
}
"""Task -> what the folders hold beside pictures, and their names, rather than classes."""
_LOOKED_AT = 2000
"""Files by which a folder is judged to hold videos or pictures."""

Items = Callable[[Path, LeftOut], list[Path]]


def claims(path: Path) -> bool:
    """Whether it is a folder without the lists that other formats have, and not of videos."""
    others = (vtab, fgvc, few_shot, coop, huggingface, clip_lists)
    return path.is_dir() and not any(other.claims(path) for other in others) and not holds_videos(path)


def holds_videos(path: Path) -> bool:
    """Whether its folders hold more video files than pictures: a few videos among pictures are left out."""
    if not path.is_dir():
        return False
    videos = pictures = seen = 0
    for inside, names in walk(path):
        if inside != path:
            videos += sum(is_video(inside / name) for name in names)
            pictures += sum(is_picture(inside / name) for name in names)
        if (seen := seen + len(names)) > _LOOKED_AT:
            break
    return videos > pictures


def load(name: str, root: str | None, seed: int, *, val: float = 0.2, test: float = 0.2) -> ClassificationData:
    """The folder `root`. Classes are the names of the folders in order; pictures may lie deeper. `peft_data.walk` says which
    files and folders do not count; a note says how many files are left out.

    Class folders alone are split by the seed, class by class. Where there are folders for training (`train`, `Training`,
    `training_set`) and testing but none for validation, a tenth of train is val; where there are `train/` and `val/` but no
    `test/`, val is the test set, and the same.

    Args:
        val, test: their parts, where there are only class folders.

    Raises:
        DataError: fewer than two classes, a class folder without pictures, or one in test that train has not.
    """
    return read_folder(name, root, seed, val, test, _pictures_in)


def _pictures_in(folder: Path, left_out: LeftOut) -> list[Path]:
    return files_in(folder, is_picture, left_out)


def read_folder(
    name: str, root: str | None, seed: int, val: float, test: float, items_in: Items, what: str = "pictures"
) -> ClassificationData:
    """As `load`, with what `items_in` finds in a class's folder in the place of pictures."""
    check_shares(val, test)
    folder = Path(root or name).resolve()
    drawn: tuple[str, ...] = ("val", "test")
    left_out, notes = LeftOut(), []
    places, beside = _split_folders(folder)
    if beside:
        notes.append(f"{', '.join(beside)} beside the train folder of {name} are left out")
    if not places:
        found = _read(folder, items_in, left_out, what)
        classes = tuple(found)
        parts = three_parts(_labelled(found, classes, folder, folder, "whole"), val, test, seed)
    else:
        found = _read(places["train"], items_in, left_out, what)
        classes = tuple(found)
        drawn = ()
        given = {"train": _labelled(found, classes, places["train"], folder, "train")}
        for split in ("val", "test"):
            given[split] = no_pictures(split)
            if split in places:
                own = _read(places[split], items_in, left_out, what, may_be_empty=True)
                given[split] = _labelled(own, classes, places[split], folder, split)
        if not len(given["test"]) and len(given["val"]):
            given["test"], given["val"] = given["val"], no_pictures("val")
            notes.append(f"{name} has no test folder: its val folder is the test set, and val a tenth of train")
        elif not len(given["test"]):
            notes.append(f"{name} has neither a test nor a val folder: nothing can be tested")
        if not len(given["val"]):
            drawn = ("val",)
            given["train"], given["val"] = tenth_as_val(given["train"], seed)
        parts = given["train"], given["val"], given["test"]
    for task, (maps, names) in MAPS.items():
        if len(classes) > 1 and {each.lower() for each in classes} <= names:
            notes.append(
                f"the folders of {name} are called as pictures and their {maps} are: --task {task} tells each pixel"
            )
    data = ClassificationData(name, classes, *parts)
    return with_findings(data, [*notes, *left_out.notes(folder, what)], left_out.count, drawn)


def _split_folders(folder: Path) -> tuple[dict[str, Path], list[str]]:
    """Split → its folder, and the names of other folders; both empty where the folders are classes."""
    inside = folders_in(folder)
    places: dict[str, Path] = {}
    for path in inside:
        split = split_of(path.name)
        if split and split in places:
            raise DataError(f"{folder} has two folders for {split}, {places[split].name} and {path.name}: keep one")
        if split:
            places[split] = path
    others = [path.name for path in inside if not split_of(path.name)]
    if places and not others and "train" not in places:
        has = ", ".join(path.name for path in places.values())
        raise DataError(f"{folder} has {has} but no train folder: add train/ with a folder per class")
    if "train" not in places or (
        others and not folders_in(places["train"])
    ):  # `train` may be a class, beside car and bus
        return {}, []
    return places, others


def _read(
    folder: Path, items_in: Items, left_out: LeftOut, what: str, may_be_empty: bool = False
) -> dict[str, list[Path]]:
    """Class → what is in its folder, in the order of names."""
    inside = folders_in(folder, left_out)
    if not inside:
        has = "pictures but no folder" if any(map(is_picture, folder.iterdir())) else "no folder"
        raise DataError(f"{folder} has {has}: put the pictures of each class into a folder with the class's name")
    if whole := next((path for path in inside if any(of.claims(path) for of in (vtab, fgvc, few_shot))), None):
        raise DataError(f"{folder} holds data sets, not classes: open one of them, such as {whole}")
    names = [same_name(path.name) for path in inside]
    found: dict[str, list[Path]] = {}
    empty = []
    for path, name in zip(inside, names, strict=True):
        runs = len(left_out.runs)
        items = items_in(path, left_out)
        if items:
            found[name if names.count(name) == 1 else path.name] = items
        elif len(left_out.runs) == runs:
            empty.append(str(path))
    if empty and not may_be_empty:
        are = "is a class folder" if len(empty) == 1 else "are class folders"
        raise DataError(f"{', '.join(empty)} {are} without {what}: add some, or remove the folder")
    if not may_be_empty and len(inside) == 1 and len(deeper := folders_in(inside[0])) > 1:
        raise DataError(f"{folder} has one folder, which has {len(deeper)}: open {inside[0]}, if they are the classes")
    return found


def _labelled(found: dict[str, list[Path]], classes: tuple[str, ...], folder: Path, root: Path, split: str) -> Pictures:
    if odd := sorted(set(found).difference(classes)):
        near = nearest(odd[0], classes)
        raise DataError(f"{folder / odd[0]} is a class that train has not{near}: name it as train does")
    rows = [(path, label) for label, name in enumerate(classes) for path in found.get(name, ())]
    labels = torch.tensor([label for _, label in rows], dtype=torch.int64)
    return Pictures([path for path, _ in rows], labels, root=root, split=split)
