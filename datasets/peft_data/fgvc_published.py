"""The five fine-grained sets as their authors publish them: which picture is in which split, and its class.

CUB-200-2011, NABirds   images.txt image_class_labels.txt train_test_split.txt; pictures in images/
Stanford Dogs           train_list.mat test_list.mat (in lists/ or beside Images/)
Stanford Cars           cars_annos.mat with car_ims/, or devkit/ with cars_train/ and cars_test/
Oxford Flowers          setid.mat imagelabels.mat with jpg/
"""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import Any

from peft_data.errors import DataError
from peft_data.texts import read_lines

Splits = dict[str, dict[str, int | str]]
MARKS = (
    "train_test_split.txt",
    "train_list.mat",
    "lists/train_list.mat",
    "cars_annos.mat",
    "devkit/cars_train_annos.mat",
    "setid.mat",
)


def published(folder: Path) -> Splits | None:
    """Split → picture → class id, or None where none of the files above is.

    Raises:
        DataError: one of the files cannot be read, or one that belongs to it is missing.
    """
    mark = next((mark for mark in MARKS if (folder / mark).is_file()), None)
    if mark is None:
        return None
    try:
        if mark.endswith(".txt"):
            return _birds(folder)
        if mark.endswith("train_list.mat"):
            return _dogs((folder / mark).parent)
        if mark == "setid.mat":
            return _flowers(folder)
        return _cars(folder / mark) if mark == "cars_annos.mat" else _cars_devkit(folder)
    except (OSError, ValueError, KeyError, IndexError, NotImplementedError) as error:
        raise DataError(
            f"the lists in {folder} cannot be read ({error}): give {mark} and what belongs to it as published"
        ) from error


def _mat(path: Path) -> dict[str, Any]:
    from scipy.io import loadmat
    from scipy.io.matlab import MatReadError

    try:
        return loadmat(str(path), squeeze_me=True)
    except (MatReadError, TypeError, zlib.error) as error:
        raise ValueError(f"{path.name}: {error}") from error


def _birds(folder: Path) -> Splits:
    tables = []
    for name in ("images.txt", "image_class_labels.txt", "train_test_split.txt"):
        lines = read_lines(folder / name, "a list of pictures")
        tables.append(dict(line.split(maxsplit=1) for _, line in lines))
    paths, classes, in_train = tables
    splits: Splits = {"train": {}, "val": {}, "test": {}}
    for key, path in paths.items():
        splits["train" if in_train[key].strip() == "1" else "test"][path.strip()] = int(classes[key])
    return splits


def _dogs(folder: Path) -> Splits:
    splits: Splits = {"train": {}, "val": {}, "test": {}}
    for split in ("train", "test"):
        table = _mat(folder / f"{split}_list.mat")
        splits[split] = {str(path): int(word) for path, word in zip(table["file_list"], table["labels"], strict=True)}
    return splits


def _cars(path: Path) -> Splits:
    splits: Splits = {"train": {}, "val": {}, "test": {}}
    for row in _mat(path)["annotations"]:
        splits["test" if int(row["test"]) else "train"][str(row["relative_im_path"])] = int(row["class"])
    return splits


def _cars_devkit(folder: Path) -> Splits:
    splits: Splits = {"train": {}, "val": {}, "test": {}}
    test = next(
        (path for path in (folder / "devkit", folder) if (path / "cars_test_annos_withlabels.mat").is_file()), folder
    )
    for split, path in (
        ("train", folder / "devkit/cars_train_annos.mat"),
        ("test", test / "cars_test_annos_withlabels.mat"),
    ):
        rows = _mat(path)["annotations"]
        splits[split] = {f"cars_{split}/{row['fname']}": int(row["class"]) for row in rows}
    return splits


def _flowers(folder: Path) -> Splits:
    ids, labels = _mat(folder / "setid.mat"), _mat(folder / "imagelabels.mat")["labels"]
    return {
        split: {f"jpg/image_{number:05d}.jpg": int(labels[number - 1]) for number in ids[key].tolist()}
        for split, key in (("train", "trnid"), ("val", "valid"), ("test", "tstid"))
    }
