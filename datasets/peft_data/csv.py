"""A table of pictures: a .csv file with the header `path,label`, and a column `split` if it fixes the splits.

path,label,split
img/1.jpg,cat,train
"""

from __future__ import annotations

import csv
from pathlib import Path

from peft_data.base import ClassificationData
from peft_data.errors import DataError, nearest
from peft_data.lists import listed
from peft_data.splits import tenth_as_val, three_parts

NAMES: dict[str, str] = {}
_SPLITS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}


def claims(path: Path) -> bool:
    """Whether it is a .csv file."""
    return path.is_file() and path.suffix.lower() == ".csv"


def load(
    name: str,
    root: str | None,
    seed: int,
    *,
    path_column: str = "path",
    label_column: str = "label",
    split_column: str = "split",
    val: float = 0.2,
    test: float = 0.2,
) -> ClassificationData:
    """The table `root`. Paths are relative to its folder. Labels are words or numbers; classes are the different ones
    in order. A table with splits but no val gives a tenth of train; one without splits is split by the seed.

    Args:
        path_column, label_column, split_column: the columns' names; the last may be absent.
        val, test: their parts, where the table has no splits.

    Raises:
        DataError: names the line or column that is missing or wrong, or all pictures that are not there.
    """
    file = Path(root or name).resolve()
    rows = _rows(file, path_column, label_column)
    words = [row[label_column] for row in rows]
    classes = sorted(set(words), key=lambda word: (0, int(word), word) if word.isdecimal() else (1, 0, word))
    number = {word: label for label, word in enumerate(classes)}
    names = [row[path_column] for row in rows]
    whole = listed(names, [number[word] for word in words], [file.parent], file.parent, file)
    if split_column not in rows[0]:
        parts = three_parts(whole, val, test, seed)
        return ClassificationData(Path(name).stem, tuple(classes), *parts)
    given: dict[str, list[int]] = {"train": [], "val": [], "test": []}
    for index, row in enumerate(rows):
        word = (row[split_column] or "").strip().lower()
        if word not in _SPLITS:
            raise DataError(
                f"line {index + 2} of {file} has the split {word!r}{nearest(word, _SPLITS)}: train, val or test"
            )
        given[_SPLITS[word]].append(index)
    train, val_part, test_part = (whole.subset(indices) for indices in given.values())
    if not len(val_part):
        train, val_part = tenth_as_val(train, seed)
    return ClassificationData(Path(name).stem, tuple(classes), train, val_part, test_part)


def _rows(file: Path, path_column: str, label_column: str) -> list[dict[str, str]]:
    try:
        with open(file, newline="", encoding="utf-8-sig") as text:
            table = csv.DictReader(text, skipinitialspace=True)
            header = list(table.fieldnames or [])
            rows = list(table)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{file} cannot be read as a table ({error}): give a UTF-8 .csv file") from error
    for column in (path_column, label_column):
        if column not in header:
            raise DataError(
                f"{file} has no column {column!r}{nearest(column, header)}: its first line must be path,label"
            )
    if not rows:
        raise DataError(f"{file} lists no picture: add a line `path,label` for each")
    for number, row in enumerate(rows, 2):
        for column in (path_column, label_column):
            row[column] = (row[column] or "").strip()
            if not row[column]:
                raise DataError(f"line {number} of {file} has no {column}: each line must have a path and a label")
    return rows
