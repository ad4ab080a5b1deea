"""Pascal VOC: JPEGImages, an XML file a picture in Annotations, and lists in ImageSets/Main.

VOC2007/JPEGImages/000012.jpg  VOC2007/Annotations/000012.xml  VOC2007/ImageSets/Main/train.txt
"""

from __future__ import annotations

import xml.etree.ElementTree as ET
from pathlib import Path

import torch

from peft_data.annotations.base import Annotated
from peft_data.errors import DataError, listing
from peft_data.lists import is_there
from peft_data.texts import read_lines, read_text

SUFFIXES = (".jpg", ".jpeg", ".png", ".JPG", ".JPEG", ".PNG")


def claims(path: Path) -> bool:
    """Whether it is a folder with JPEGImages and Annotations."""
    return (path / "JPEGImages").is_dir() and (path / "Annotations").is_dir()


def lists(folder: Path, kind: str) -> dict[str, list[str]]:
    """Split → the names in its list of ImageSets/`kind`; {} where there is none."""
    found = {}
    for split in ("train", "val", "test"):
        file = folder / "ImageSets" / kind / f"{split}.txt"
        if file.is_file():
            found[split] = [line.split()[0] for _, line in read_lines(file, "a list of pictures")]
    return found if "train" in found else {}


def picture_of(folder: Path, name: str) -> str:
    """The file name of a listed picture, with the ending that it has in JPEGImages."""
    return next((name + end for end in SUFFIXES if is_there(folder / "JPEGImages" / (name + end))), name + SUFFIXES[0])


def read(folder: Path) -> dict[str, Annotated]:
    """Split → what the XML files of its list say; `train` alone where there is no list.

    Raises:
        DataError: an XML file that is missing or damaged, or no annotated picture.
    """
    files = sorted(each.stem for each in (folder / "Annotations").glob("*.xml"))
    found = lists(folder, "Main") or {"train": files}
    if not found["train"]:
        raise DataError(f"{folder} lists no picture: put an XML file for each into Annotations")
    known = set(files)
    missing = [
        str(folder / "Annotations" / f"{name}.xml") for names in found.values() for name in names if name not in known
    ]
    if missing:
        raise DataError(
            f"{len(missing)} listed pictures of {folder} have no XML file: put them in place{listing(missing)}"
        )
    parts, said = (
        {},
        {split: [_objects(folder / "Annotations" / f"{name}.xml") for name in names] for split, names in found.items()},
    )
    classes = tuple(sorted({name for things, _, _ in said["train"] for name in things}))
    for split, names in found.items():
        things, boxes, hard = zip(*said[split], strict=True)
        pictures = tuple(picture_of(folder, name) for name in names)
        parts[split] = Annotated(folder, (folder / "JPEGImages",), pictures, boxes, things, hard, classes)
    return parts


def _objects(file: Path) -> tuple[tuple[str, ...], torch.Tensor, torch.Tensor]:
    """Names, boxes (from 0, as `left − 1` of VOC's corners, which count from 1) and difficulty of a picture's objects."""
    text = read_text(file, "VOC's annotations")
    if "<!DOCTYPE" in text or "<!ENTITY" in text:
        raise DataError(f"{file} declares entities, which VOC's annotations never do: check the file")
    try:
        objects = ET.fromstring(text).findall("object")
        names = tuple((each.findtext("name") or "").strip() for each in objects)
        corners = [
            [float(each.findtext(f"bndbox/{key}", "nan")) for key in ("xmin", "ymin", "xmax", "ymax")]
            for each in objects
        ]
        hard = torch.tensor([(each.findtext("difficult") or "0").strip() == "1" for each in objects], dtype=torch.bool)
    except (ET.ParseError, ValueError) as error:
        raise DataError(f"{file} is no XML of VOC ({error}): check the file") from error
    if "" in names:
        raise DataError(f"{file} has an object without a name: give it one")
    boxes = torch.tensor(corners).view(-1, 4) - torch.tensor([1.0, 1.0, 0.0, 0.0])
    if not torch.isfinite(boxes).all():
        raise DataError(f"{file} has an object without xmin, ymin, xmax and ymax: give it its box")
    return names, boxes, hard
