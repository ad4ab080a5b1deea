"""A folder with lists: train.txt, and val.txt and test.txt if it fixes them, each line a picture and its labels.

img/1.jpg,sea,people
img/2.jpg
"""

from __future__ import annotations

from pathlib import Path

import torch

from peft_data.base import ClassificationData, no_pictures
from peft_data.errors import DataError
from peft_data.findings import with_findings
from peft_data.lists import check_trained, listed
from peft_data.multi_label.table import one_hot, split_words
from peft_data.splits import check_shares, three_parts
from peft_data.tables import numbered, with_val
from peft_data.targets import MultiLabelData
from peft_data.texts import read_lines

NAMES: dict[str, str] = {}


def claims(path: Path) -> bool:
    """Whether it is a folder with train.txt, or a text file."""
    return (path / "train.txt").is_file() or (path.is_file() and path.suffix.lower() == ".txt")


def load(name: str, root: str | None, seed: int, *, val: float = 0.2, test: float = 0.2) -> ClassificationData:
    """The lists in `root`, or the list `root`. Pictures are relative to the list's folder; commas or tabs divide; a picture may
    have no label.

    Args:
        val, test: their parts, where there is one list alone.

    Raises:
        DataError: a list without pictures, a label that is tested and not trained, or pictures that are not there.
    """
    check_shares(val, test)
    place = Path(root or name).resolve()
    folder = place if place.is_dir() else place.parent
    files = {"train": place} if folder != place else {part: place / f"{part}.txt" for part in ("train", "val", "test")}
    read = {part: _read(file) for part, file in files.items() if part == "train" or file.is_file()}
    classes = numbered([word for _, words in read["train"] for word in words])
    for part, rows in read.items():
        check_trained(files[part], (words for _, words in rows), classes, "label")
    parts = {
        part: listed([each for each, _ in rows], one_hot([words for _, words in rows], classes), [folder], folder, files[part],
                     torch.int8)
        for part, rows in read.items()
    }  # fmt: skip
    if len(parts) == 1:
        train, val_part, test_part = three_parts(parts["train"], val, test, seed)
        drawn: tuple[str, ...] = ("val", "test")
    else:
        test_part = parts.get("test", no_pictures("test"))
        train, val_part, drawn = with_val(parts["train"], parts.get("val", no_pictures("val")), seed)
    return with_findings(MultiLabelData(Path(name).stem, classes, train, val_part, test_part), drawn=drawn)


def _read(file: Path) -> list[tuple[str, list[str]]]:
    rows = []
    for number, line in read_lines(file, "a list of pictures"):
        picture, *words = split_words(line, ",\t") or [""]
        if not picture or line.startswith(","):
            raise DataError(f"line {number} of {file} names no picture: each line must be `picture,label,label`")
        rows.append((picture, words))
    if not rows:
        raise DataError(f"{file} lists no picture: each line must be `picture,label,label`")
    return rows
