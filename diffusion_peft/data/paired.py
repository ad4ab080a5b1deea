"""Pairs of files: two folders with the same names, or a table with a row a pair."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from peft_data.errors import listing
from peft_data.walk import files_in

from diffusion_peft.data.pictures import read_rows
from peft_core.errors import PeftError, nearest
from peft_core.files import read_text

TABLES = ("metadata.jsonl", "metadata.csv")
"""As Hugging Face's `imagefolder` calls them."""
OF_FILES = "_file_name"
"""What `imagefolder` appends to the name of a column of files, where there are several."""


def by_name(folder: Path, wanted: Callable[[Path], bool]) -> dict[str, Path]:
    """A folder's files by their paths there without suffix.

    Raises:
        PeftError: two files of one name.
    """
    found: dict[str, Path] = {}
    for file in files_in(folder, wanted):
        name = file.relative_to(folder).with_suffix("").as_posix()
        if name in found:
            raise PeftError(f"{file} and {found[name].name} have one name: which of them belongs to the pair?")
        found[name] = file
    return found


def lone(one: tuple[str, str, Mapping[str, Path]], other: tuple[str, str, Mapping[str, Path]]) -> list[str]:
    """Which files have no partner, in words.

    Args:
        one, other: a folder's name, what a file of it is to the other's, and its files `by_name`.
    """
    return sorted(
        f"{name}/{stem}{files[stem].suffix} has no {partner}"
        for (name, _, files), (_, partner, others) in ((one, other), (other, one))
        for stem in files.keys() - others.keys()
    )


def check_whole(halves: Sequence[str], where: object) -> None:
    """Raises PeftError: there are halves of pairs, told in words."""
    if halves:
        raise PeftError(f"{len(halves)} pairs of {where} miss their half:{listing(halves)}")


def table_in(place: Path) -> Path | None:
    """The table that a folder holds, or that a file is."""
    if place.is_dir():
        return next((place / name for name in TABLES if (place / name).is_file()), None)
    return place if place.suffix.lower() in (".jsonl", ".csv") and place.is_file() else None


def table_rows(file: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line, row by column) of a .jsonl or .csv file.

    Raises:
        PeftError: it is no UTF-8, a line is no object, or has more values than there are columns.
    """
    if file.suffix.lower() == ".jsonl":
        yield from read_rows(file)
        return
    reader = csv.DictReader(io.StringIO(read_text(file, "write it anew"), newline=""), skipinitialspace=True)
    for row in reader:
        if None in row:
            raise PeftError(
                f"line {reader.line_num} of {file} has more values than columns: put words with commas in quotes."
            )
        yield reader.line_num, {key.strip(): value for key, value in row.items()}


def train_split(data: str) -> Any:
    """The table of a Hugging Face data set, `hf/…`.

    Raises:
        PeftError: it has no train split.
    """
    from peft_data.huggingface import open_tables

    tables = open_tables(data.removeprefix("hf/"))
    if "train" not in tables:
        raise PeftError(f"{data} has no train split: it has {', '.join(tables)}.")
    return tables["train"]


def check_column(columns: Sequence[str], asked: str | None, where: str) -> None:
    """Raises PeftError: there is no column of the name that was asked for."""
    if asked is not None and asked not in columns:
        raise PeftError(f'{where} has no column "{asked}"{nearest(asked, columns)} (it has: {", ".join(columns)}).')


def column_of(columns: Sequence[str], asked: str | None, usual: Sequence[str], flag: str, where: str) -> str:
    """Which column is meant: the one asked for, else the first of the usual names that there is.

    Raises:
        PeftError: there is none.
    """
    check_column(columns, asked, where)
    names = [asked] if asked is not None else [name + end for name in usual for end in ("", OF_FILES)]
    found = next((name for name in names if name in columns), None)
    if found is None:
        raise PeftError(f"{where} has the columns {', '.join(columns)}: say with {flag} which of them is meant.")
    return found
