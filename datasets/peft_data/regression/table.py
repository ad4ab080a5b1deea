"""A table of pictures with a number each: a .csv file with the header `path,target`, and a column `split` if it fixes them.

path,target,split
img/1.jpg,3.5,train
"""

from __future__ import annotations

import math
from pathlib import Path

import torch

from peft_data.base import ClassificationData
from peft_data.errors import DataError
from peft_data.findings import with_findings
from peft_data.lists import listed
from peft_data.tables import is_table, parts_of_table, read_table
from peft_data.targets import RegressionData

NAMES: dict[str, str] = {}
claims = is_table


def load(
    name: str, root: str | None, seed: int, *, path_column: str = "path", target_column: str = "target",
    split_column: str = "split", val: float = 0.2, test: float = 0.2,
) -> ClassificationData:  # fmt: skip
    """The table `root`. Paths are relative to its folder.

    Args:
        path_column, target_column, split_column: the columns' names; the last may be absent. The number is called as its column.
        val, test: their parts, where the table has no splits.

    Raises:
        DataError: names the line or column that is missing or wrong, or all pictures that are not there.
    """
    file = Path(root or name).resolve()
    rows = read_table(file, path_column, target_column)
    numbers = []
    for line, row in enumerate(rows, 2):
        try:
            numbers.append(float(row[target_column]))
        except ValueError:
            numbers.append(math.nan)
        if not math.isfinite(numbers[-1]):
            raise DataError(
                f"line {line} of {file} has the {target_column} {row[target_column]!r}: give a finite number"
            )
    whole = listed([row[path_column] for row in rows], numbers, [file.parent], file.parent, file, torch.float32)
    parts, drawn = parts_of_table(file, rows, whole, split_column, val, test, seed)
    return with_findings(RegressionData(Path(name).stem, (target_column,), *parts), drawn=drawn)
