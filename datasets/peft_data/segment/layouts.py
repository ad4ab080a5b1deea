"""What the layouts of masks share: pairing pictures with masks, and splits of pairs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch

from peft_data.base import ClassificationData, Pictures
from peft_data.errors import DataError, listing
from peft_data.findings import with_findings
from peft_data.pictures import is_picture
from peft_data.segment.masks import IGNORED, Colour, Masks, SegmentationData, read_classes, same_sizes
from peft_data.splits import check_shares, completed
from peft_data.texts import read_lines
from peft_data.walk import files_in

Pair = tuple[Path, Path]
CLASSES = ("classes.txt", "labels.txt", "labelmap.txt", "class_dict.csv", "classes.csv")
"""Files that may name the classes."""


def pairs_in(pictures: Path, masks: Path, also: tuple[str, ...] = ("", "_mask", "_seg", "_label")) -> list[Pair]:
    """Pictures of a folder, each with the mask of its name (or the name and one of these words).

    Raises:
        DataError: a picture without a mask, or none at all.
    """
    files = files_in(pictures, is_picture)
    by_name = {file.relative_to(masks).with_suffix("").as_posix(): file for file in files_in(masks, is_picture)}
    found, missing = [], []
    for file in files:
        name = file.relative_to(pictures).with_suffix("").as_posix()
        mask = next((by_name[name + word] for word in also if name + word in by_name), None)
        missing += [str(file)] if mask is None else []
        found += [(file, mask)] if mask is not None else []
    if missing:
        raise DataError(
            f"{len(missing)} pictures have no mask of their name in {masks}: add or remove them{listing(missing)}"
        )
    if not found:
        raise DataError(f"{pictures} has no pictures: put them there, and their masks into {masks}")
    return found


def classes_in(folder: Path) -> tuple[tuple[str, ...], dict[Colour, int] | None]:
    """What a file of the folder says of the classes; nothing where there is none."""
    file = next((folder / name for name in CLASSES if (folder / name).is_file()), None)
    return ((), None) if file is None else read_classes(file, read_lines(file, "names of classes"))


def segmentation(
    name: str, root: Path, parts: Mapping[str, list[Pair]], classes: tuple[str, ...],
    colours: Mapping[Colour, int] | None, val: float, test: float, seed: int, shift: int = 0,
) -> ClassificationData:  # fmt: skip
    """The data set of pairs by split; `train` alone is split by the seed. Without names the classes are as many as the training
    masks hold.

    Raises:
        DataError: masks of another size than their pictures, or one that cannot be read.
    """
    check_shares(val, test)
    whole = [pair for pairs in parts.values() for pair in pairs]
    same_sizes(*zip(*whole, strict=True))
    masks, notes = Masks([mask for _, mask in whole], colours, shift), []
    if not classes:
        most = max(int(mask[mask != IGNORED].max(initial=0)) for mask in map(masks.read, range(len(parts["train"]))))
        classes = tuple(f"class {number + shift}" for number in range(max(2, most + 1)))
        notes.append(f"the classes have no names: list {len(classes)} in classes.txt, one a line")
    start, given = 0, {}
    for split, pairs in parts.items():
        rows = torch.arange(start, start + len(pairs))
        given[split] = Pictures([picture for picture, _ in pairs], rows, root=root, split=split)
        start += len(pairs)
    three, drawn, more = completed(given, val, test, seed, by_class=False)  # labels are rows of masks
    data = SegmentationData(Path(name).stem, classes, *three, masks=masks)
    return with_findings(data, [*notes, *more], drawn=drawn)
