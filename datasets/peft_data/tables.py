"""Tables with a header, `path,label[,split]`: what tables of pictures and of clips share."""

from __future__ import annotations

import csv
import io
from pathlib import Path

from peft_data.base import ClassificationData, Pictures
from peft_data.errors import DataError, nearest
from peft_data.findings import same_name, with_findings
from peft_data.splits import check_shares, split_of, tenth_as_val, three_parts
from peft_data.texts import read_text

Row = dict[str, str]


def is_table(path: Path) -> bool:
    """Whether it is a .csv file."""
    return path.is_file() and path.suffix.lower() == ".csv"


def read_rows(file: Path) -> tuple[list[str], list[Row]]:
    """A table's header and rows, divided by commas, semicolons or tabs as its header is.

    Raises:
        DataError: it is no table.
    """
    text = read_text(file, "a table")
    header_line = text.partition("\n")[0]
    mark = max(",;\t", key=header_line.count)
    try:
        table = csv.DictReader(io.StringIO(text, newline=""), skipinitialspace=True, delimiter=mark)
        header = [name.strip() for name in table.fieldnames or []]
        table.fieldnames = header
        return header, list(table)
    except csv.Error as error:
        raise DataError(f"{file} cannot be read as a table ({error}): give a .csv file") from error


def read_table(file: Path, path_column: str, label_column: str, what: str = "picture") -> list[Row]:
    """The rows of a table, paths and labels stripped.

    Raises:
        DataError: names the line or column that is missing or wrong.
    """
    header, rows = read_rows(file)
    for column in (path_column, label_column):
        if column not in header:
            raise DataError(
                f"{file} has no column {column!r}{nearest(column, header)}: its first line must be "
                f"{path_column},{label_column}"
            )
    if not rows:
        raise DataError(f"{file} lists no {what}: add a line `{path_column},{label_column}` for each")
    for number, row in enumerate(rows, 2):
        for column in (path_column, label_column):
            row[column] = (
                same_name((row[column] or "").strip()) if column == label_column else (row[column] or "").strip()
            )
            if not row[column]:
                raise DataError(f"line {number} of {file} has no {column}: each line must have a path and a label")
    return rows


def numbered(words: list[str]) -> tuple[str, ...]:
    """The different words in order, numbers by their value before other words."""
    return tuple(sorted(set(words), key=lambda word: (0, int(word), word) if _short(word) else (1, 0, word)))


def _short(word: str) -> bool:
    return word.isascii() and word.isdigit() and len(word) < 20


def from_table(
    name: str, file: Path, rows: list[Row], whole: Pictures, classes: tuple[str, ...], split_column: str, val: float,
    test: float, seed: int,
) -> ClassificationData:  # fmt: skip
    """The data set of a table whose pictures or clips, `whole`, are found.

    A table with splits but no val gives a tenth of train; one without splits is split by the seed, class by class.

    Raises:
        DataError: a split that is none, no training row, or a class that is tested and not trained.
    """
    parts, drawn = parts_of_table(file, rows, whole, split_column, val, test, seed)
    trained = set(parts[0].labels.tolist())
    odd = [label for part in parts[1:] for label in part.labels.unique().tolist() if label not in trained]
    if trained and odd:
        near = nearest(classes[odd[0]], [classes[label] for label in sorted(trained)])
        raise DataError(
            f"{file} has the class {classes[odd[0]]!r} in val or test, which train has not{near}: name it as in train"
        )
    return with_findings(ClassificationData(Path(name).stem, classes, *parts), drawn=drawn)


def parts_of_table(
    file: Path, rows: list[Row], whole: Pictures, split_column: str, val: float, test: float, seed: int
) -> tuple[tuple[Pictures, Pictures, Pictures], tuple[str, ...]]:
    """Train, val and test as the table says, val a tenth of train where it says none; without splits all as the seed draws
    them. And the splits that the seed drew, which have no class that train has not.

    Raises:
        DataError: a split that is none.
    """
    check_shares(val, test)
    if split_column not in rows[0]:
        return three_parts(whole, val, test, seed), ("val", "test")
    given: dict[str, list[int]] = {"train": [], "val": [], "test": []}
    for index, row in enumerate(rows):
        split = split_of(word := (row[split_column] or "").strip())
        if split is None:
            near = nearest(word, given)
            raise DataError(f"line {index + 2} of {file} has the split {word!r}{near}: train, val or test")
        given[split].append(index)
    train, val_part, test_part = (whole.subset(indices) for indices in given.values())
    train, val_part, drawn = with_val(train, val_part, seed)
    return (train, val_part, test_part), drawn


def with_val(train: Pictures, val: Pictures, seed: int) -> tuple[Pictures, Pictures, tuple[str, ...]]:
    """Train and val, a tenth of train where the data have no val; and the splits that the seed drew."""
    return (train, val, ()) if len(val) else (*tenth_as_val(train, seed), ("val",))
