"""A table of pictures with several labels: one column a label, or one column that lists them.

path,sea,boat,people,split                path,labels
img/1.jpg,1,0,1,train            or       img/1.jpg,sea; people
"""

from __future__ import annotations

import re
from pathlib import Path

import torch

from peft_data.base import ClassificationData
from peft_data.errors import DataError, nearest
from peft_data.findings import same_name, with_findings
from peft_data.lists import listed
from peft_data.tables import Row, is_table, numbered, parts_of_table, read_rows
from peft_data.targets import MultiLabelData

NAMES: dict[str, str] = {}
claims = is_table
WORDS = {word: value for value, words in {
    1: ("1", "1.0", "true", "yes", "x"), 0: ("0", "0.0", "false", "no"), -1: ("-1", "-1.0", "", "?", "nan", "na"),
}.items() for word in words}  # fmt: skip
"""What a cell of a label's column may say: it has it, it has it not, nobody knows."""


def load(
    name: str, root: str | None, seed: int, *, path_column: str = "path", labels_column: str = "labels",
    split_column: str = "split", val: float = 0.2, test: float = 0.2,
) -> ClassificationData:  # fmt: skip
    """The table `root`. Paths are relative to its folder. Every column but those of path and split is a label, whose cells are 1
    or 0, and empty (or -1) where nobody knows; a column `labels` lists them instead, divided by `;` or `|`.

    Args:
        path_column, split_column: the columns' names; the last may be absent.
        labels_column: the column that lists labels, where there is one.
        val, test: their parts, where the table has no splits.

    Raises:
        DataError: names the line or column that is missing or wrong, or all pictures that are not there.
    """
    file = Path(root or name).resolve()
    header, rows = read_rows(file)
    if path_column not in header:
        near = nearest(path_column, header)
        raise DataError(f"{file} has no column {path_column!r}{near}: its first line must be path and one name a label")
    if not rows:
        raise DataError(f"{file} lists no picture: add a line for each")
    columns = [name for name in header if name and name not in (path_column, split_column)]
    if not columns:
        raise DataError(f"{file} has no label: give it one column a label")
    classes, labels = _listed(rows, labels_column) if labels_column in header else _columns(file, rows, columns)
    names = [(row[path_column] or "").strip() for row in rows]
    if "" in names:
        raise DataError(f"line {names.index('') + 2} of {file} has no {path_column}: each line must have one")
    whole = listed(names, labels, [file.parent], file.parent, file, torch.int8)
    parts, drawn = parts_of_table(file, rows, whole, split_column, val, test, seed)
    return with_findings(MultiLabelData(Path(name).stem, classes, *parts), drawn=drawn)


def _columns(file: Path, rows: list[Row], columns: list[str]) -> tuple[tuple[str, ...], list[list[int]]]:
    labels = []
    for number, row in enumerate(rows, 2):
        words = [(row[column] or "").strip().lower() for column in columns]
        odd = next((place for place, word in enumerate(words) if word not in WORDS), None)
        if odd is not None:
            raise DataError(
                f"line {number} of {file} has {words[odd]!r} under {columns[odd]!r}: a label's column says 1 or 0, or nothing "
                "where nobody knows"
            )
        labels.append([WORDS[word] for word in words])
    return tuple(map(same_name, columns)), labels


def _listed(rows: list[Row], column: str) -> tuple[tuple[str, ...], list[list[int]]]:
    found = [split_words(row[column] or "") for row in rows]
    classes = numbered([word for words in found for word in words])
    return classes, one_hot(found, classes)


def split_words(text: str, marks: str = ";|") -> list[str]:
    """`sea; people` as its words."""
    return [same_name(word.strip()) for word in re.split(f"[{re.escape(marks)}]", text) if word.strip()]


def one_hot(found: list[list[str]], classes: tuple[str, ...]) -> list[list[int]]:
    return [[int(name in words) for name in classes] for words in found]
