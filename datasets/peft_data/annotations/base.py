"""What annotation files say, and how their splits become train, val and test."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from peft_data.base import Pictures
from peft_data.lists import check_trained, listed
from peft_data.splits import completed


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
        check_trained(part.source, part.things, classes)
    return classes


def split_up(
    parts: Mapping[str, Annotated], labels: Mapping[str, Sequence], kind: torch.dtype, root: Path, val: float,
    test: float, seed: int, by_class: bool = True,
) -> tuple[tuple[Pictures, Pictures, Pictures], tuple[str, ...], list[str]]:  # fmt: skip
    """The pictures with these labels, one a picture of each split, as `completed` gives them."""
    given = {
        split: listed(part.names, labels[split], part.folders, root, part.source, kind) for split, part in parts.items()
    }
    return completed(given, val, test, seed, by_class)
