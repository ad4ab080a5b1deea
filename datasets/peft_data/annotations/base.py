"""What annotation files say, and how their splits become train, val and test."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from peft_data.base import Pictures, no_pictures
from peft_data.errors import DataError, nearest
from peft_data.lists import listed
from peft_data.splits import tenth_as_val, three_parts


@dataclass(frozen=True, eq=False)
class Annotated:
    """Pictures of one annotation file or list, and the things in them.

    Args:
        source: the file.
        folders: where the pictures may lie.
        names: N file names.
        boxes: of each picture float32 `n 4`: left, top, right, bottom in pixels.
        things: of each picture the names of its boxes' classes.
        hard: of each picture bool `n`, groups and difficult ones.
        classes: names in the file's order; those of a file that lists none are the ones that occur.
    """

    source: Path
    folders: tuple[Path, ...]
    names: tuple[str, ...]
    boxes: tuple[Tensor, ...]
    things: tuple[tuple[str, ...], ...]
    hard: tuple[Tensor, ...]
    classes: tuple[str, ...]


def classes_of(parts: Mapping[str, Annotated]) -> tuple[str, ...]:
    """The classes of train.

    Raises:
        DataError: another split has one that train has not.
    """
    classes = parts["train"].classes
    for part in parts.values():
        if odd := next((name for names in part.things for name in names if name not in classes), None):
            raise DataError(
                f"{part.source} has the class {odd!r}, which train has not{nearest(odd, classes)}: name it as in train"
            )
    return classes


def split_up(
    parts: Mapping[str, Annotated], labels: Mapping[str, Sequence], kind: torch.dtype, root: Path, val: float,
    test: float, seed: int,
) -> tuple[tuple[Pictures, Pictures, Pictures], tuple[str, ...], list[str]]:  # fmt: skip
    """Train, val and test, the splits that the seed drew, and what to tell.

    One list is split by the seed; of train and val alone val is the test set and val a tenth of train; of train and test val is
    that tenth, too.

    Args:
        labels: of each split, one a picture.
    """
    given = {
        split: listed(part.names, labels[split], part.folders, root, part.source, kind) for split, part in parts.items()
    }
    if len(given) == 1:
        return three_parts(given["train"], val, test, seed), ("val", "test"), []
    notes = []
    if "test" not in given:
        given["test"] = given.pop("val")
        notes.append("there is no test split: val is the test set, and val a tenth of train")
    if "val" not in given:
        given["train"], given["val"] = tenth_as_val(given["train"], seed)
        return (given["train"], given["val"], given["test"]), ("val",), notes
    return (given["train"], given.get("val", no_pictures("val")), given["test"]), (), notes
