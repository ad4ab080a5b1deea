"""A table of pictures: a .csv file with the header `path,label`, and a column `split` if it fixes the splits.

path,label,split
img/1.jpg,cat,train
"""

from __future__ import annotations

from pathlib import Path

from peft_data import clip_table
from peft_data.base import ClassificationData
from peft_data.lists import listed
from peft_data.tables import from_table, is_table, numbered, read_table

NAMES: dict[str, str] = {}


def claims(path: Path) -> bool:
    """Whether it is a .csv file, and not of clips."""
    return is_table(path) and not clip_table.claims(path)


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
        DataError: names the line or column that is missing or wrong, a class that is tested and not trained, or all
            pictures that are not there.
    """
    file = Path(root or name).resolve()
    rows = read_table(file, path_column, label_column)
    classes = numbered([row[label_column] for row in rows])
    number = {word: label for label, word in enumerate(classes)}
    names, labels = [row[path_column] for row in rows], [number[row[label_column]] for row in rows]
    whole = listed(names, labels, [file.parent], file.parent, file)
    return from_table(name, file, rows, whole, classes, split_column, val, test, seed)
