"""Folders of pictures: `train/ val/ test/` with a folder per class in each, or just a folder per class.

photos/train/cat/1.jpg  photos/train/dog/2.png  photos/val/…  photos/test/…          or          photos/cat/1.jpg
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from peft_data import clip_lists, few_shot, fgvc, vtab
from peft_data.base import ClassificationData, Pictures, no_pictures
from peft_data.errors import DataError, nearest
from peft_data.pictures import is_picture
from peft_data.splits import tenth_as_val, three_parts
from peft_data.video.decoding import is_video

NAMES: dict[str, str] = {}
SPLITS = {"train": ("train", "training"), "val": ("val", "valid", "validation"), "test": ("test", "testing")}
_LISTS = (
    "train*.json", "train*.txt", "*.mat", "lists/*.mat", "devkit/*.mat", "dataset_dict.json", "dataset_info.json",
    "annotations/train_meta.list*",
)  # fmt: skip


def claims(path: Path) -> bool:
    """Whether it is a folder without the lists that other formats have, and not of videos."""
    if not path.is_dir() or any(any(path.glob(pattern)) for pattern in _LISTS):
        return False
    return not holds_videos(path) and not clip_lists.claims(path)


def holds_videos(path: Path) -> bool:
    """Whether class folders of it, or of its train folder, hold video files."""
    return path.is_dir() and any(is_video(file) for depth in ("*/*", "*/*/*") for file in path.glob(depth))


def load(name: str, root: str | None, seed: int, *, val: float = 0.2, test: float = 0.2) -> ClassificationData:
    """The folder `root`. Classes are the names of the folders in order; pictures may lie deeper; hidden files and files
    that are no pictures do not count.

    Class folders alone are split by the seed, class by class. Where `train/` and `test/` are given but no `val/`, a
    tenth of train is val; where `train/` and `val/` are given but no `test/`, val is the test set, and the same.

    Args:
        val, test: their parts, where there are only class folders.

    Raises:
        DataError: fewer than two classes, a class folder without pictures, or one in test that train has not.
    """
    return read_folder(name, root, seed, val, test, _pictures_in)


def _pictures_in(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if is_picture(path) and path.is_file()]


def read_folder(
    name: str, root: str | None, seed: int, val: float, test: float, items_in: Callable[[Path], list[Path]]
) -> ClassificationData:
    """As `load`, with what `items_in` finds in a class's folder in the place of pictures."""
    folder = Path(root or name).resolve()
    parts = {split: _one_of(folder, names) for split, names in SPLITS.items()}
    if parts["train"] is None:
        classes = _class_folders(folder)
        whole = _read(folder, classes, folder, "whole", items_in, must_have_all=True)
        train, val_part, test_part = three_parts(whole, val, test, seed)
        return ClassificationData(name, classes, train, val_part, test_part)
    classes = _class_folders(parts["train"])
    found = {
        split: _read(path, classes, folder, split, items_in, split == "train") if path else no_pictures(split)
        for split, path in parts.items()
    }
    notes = []
    if not len(found["test"]) and len(found["val"]):
        found["test"], found["val"] = found["val"], no_pictures("val")
        notes.append(f"{name} has no test folder: its val folder is the test set, and val a tenth of train")
    elif not len(found["test"]):
        notes.append(f"{name} has neither a test nor a val folder: nothing can be tested")
    if not len(found["val"]):
        found["train"], found["val"] = tenth_as_val(found["train"], seed)
    return ClassificationData(name, classes, found["train"], found["val"], found["test"], notes=tuple(notes))


def _one_of(folder: Path, names: tuple[str, ...]) -> Path | None:
    return next((folder / name for name in names if (folder / name).is_dir()), None)


def _class_folders(folder: Path) -> tuple[str, ...]:
    names = sorted(path.name for path in folder.iterdir() if path.is_dir() and path.name[0] not in "._")
    if not names:
        has = "pictures but no folder" if any(map(is_picture, folder.iterdir())) else "no folder"
        raise DataError(f"{folder} has {has}: put the pictures of each class into a folder with the class's name")
    if whole := next((name for name in names if any(of.claims(folder / name) for of in (vtab, fgvc, few_shot))), None):
        raise DataError(f"{folder} holds data sets, not classes: open one of them, such as {folder / whole}")
    return tuple(names)


def _read(
    folder: Path,
    classes: tuple[str, ...],
    root: Path,
    split: str,
    items_in: Callable[[Path], list[Path]],
    must_have_all: bool,
) -> Pictures:
    paths: list[Path] = []
    labels: list[int] = []
    empty = []
    own = set(_class_folders(folder))
    if odd := sorted(own.difference(classes)):
        near = nearest(odd[0], classes)
        raise DataError(f"{folder / odd[0]} is a class that train has not{near}: name it as train does")
    for label, name in enumerate(classes):
        inside = sorted(items_in(folder / name)) if (folder / name).is_dir() else []
        if not inside and must_have_all:
            empty.append(str(folder / name))
        paths += inside
        labels += [label] * len(inside)
    if empty:
        are = "is a class folder" if len(empty) == 1 else "are class folders"
        what = "pictures" if items_in is _pictures_in else "clips"
        raise DataError(f"{', '.join(empty)} {are} without {what}: add some, or remove the folder")
    return Pictures(paths, torch.tensor(labels, dtype=torch.int64), root=root, split=split)
