"""COCO's annotations: a .json file with images, annotations and categories; or a folder with one a split.

data/annotations/instances_train2017.json  data/train2017/1.jpg     or     data/train/_annotations.coco.json  data/train/1.jpg
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch

from peft_data.annotations.base import Annotated
from peft_data.errors import DataError
from peft_data.splits import split_of
from peft_data.texts import read_json

_FORM = 'COCO file: {"images": […], "annotations": […], "categories": […]}'


def claims(path: Path) -> bool:
    """Whether it is a .json file, or a folder with one for train."""
    return (path.is_file() and path.suffix.lower() == ".json") or "train" in _files(path)


def _files(path: Path) -> dict[str, Path]:
    """Split → its file."""
    found: dict[str, Path] = {}
    if not path.is_dir():
        return found
    for file in sorted(
        (*path.glob("annotations/*.json"), *path.glob("*/_annotations.coco.json"), *path.glob("*.json"))
    ):
        word = file.parent.name if file.name.startswith("_annotations") else file.stem
        if "captions" in word or "keypoints" in word or "panoptic" in word or "stuff" in word:
            continue
        splits = [split_of(re.sub(r"\d", "", each)) for each in re.split(r"[_\W]+", word)]
        if split := next((each for each in splits if each), None):
            found.setdefault(split, file)
    return found


def read(path: Path) -> dict[str, Annotated]:
    """Split → what its file says; a single file is `train`.

    Raises:
        DataError: a file that is none of COCO's, or is damaged.
    """
    files = {"train": path} if path.is_file() else _files(path)
    return {split: read_file(file, path if path.is_dir() else path.parent) for split, file in files.items()}


def read_file(file: Path, root: Path) -> Annotated:
    content = read_json(file, _FORM)
    try:
        names = {each["id"]: str(each["name"]) for each in content["categories"]}
        images = {each["id"]: (number, each) for number, each in enumerate(content["images"])}
        boxes: list[list[list[float]]] = [[] for _ in images]
        things: list[list[str]] = [[] for _ in images]
        hard: list[list[bool]] = [[] for _ in images]
        for each in content["annotations"]:
            if each["image_id"] not in images:
                raise DataError(f"{file} has an annotation of the image {each['image_id']}, which it does not list")
            if each["category_id"] not in names:
                raise DataError(
                    f"{file} has an annotation of the category {each['category_id']}, which it does not list"
                )
            place, image = images[each["image_id"]]
            left, top, width, height = map(
                float, each.get("bbox") or (0, 0, image.get("width", 0), image.get("height", 0))
            )
            boxes[place].append([left, top, left + width, top + height])
            things[place].append(names[each["category_id"]])
            hard[place].append(bool(each.get("iscrowd", 0)))
        listed = tuple(str(each["file_name"]) for _, each in images.values())
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DataError(f"{file} is no {_FORM} ({type(error).__name__}: {error}): check the file") from error
    if not listed:
        raise DataError(f"{file} lists no picture: give a {_FORM}")
    inside = file.stem.split("_")[-1]
    folders = tuple(dict.fromkeys((file.parent, root / inside, root / "images" / inside, root / "images", root)))
    return Annotated(
        file, folders, listed, tuple(torch.tensor(each).view(-1, 4) for each in boxes), tuple(map(tuple, things)),
        tuple(torch.tensor(each, dtype=torch.bool) for each in hard), tuple(dict.fromkeys(names.values())),
    )  # fmt: skip


def used(parts: dict[str, Annotated]) -> tuple[str, ...]:
    """The classes that train has a thing of, in the file's order."""
    there: set[Any] = {name for names in parts["train"].things for name in names}
    return tuple(name for name in parts["train"].classes if name in there)
