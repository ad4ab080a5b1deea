"""A table of pictures and captions: a .csv or .tsv with a header, several rows a picture where it has several captions.

path,caption,split
img/1.jpg,a cat on a red chair,train
"""

from __future__ import annotations

from pathlib import Path

from peft_data.base import Pictures
from peft_data.errors import DataError, nearest
from peft_data.lists import listed
from peft_data.pairs.base import PairData, Pairs, no_pairs, pairs_of, said_once, three_parts
from peft_data.splits import split_of
from peft_data.tables import read_rows

NAMES: dict[str, str] = {}
IMAGES = ("path", "filepath", "image_path", "image", "file_name", "filename", "file", "img")
CAPTIONS = ("caption", "captions", "title", "text", "sentence", "description", "prompt", "raw")


def claims(path: Path) -> bool:
    """Whether it is a .csv or .tsv file."""
    return path.is_file() and path.suffix.lower() in (".csv", ".tsv")


def load(
    name: str,
    root: str | None,
    seed: int,
    *,
    image_column: str | None = None,
    caption_column: str | None = None,
    split_column: str = "split",
    val: float = 0.1,
    test: float = 0.1,
) -> PairData:
    """The table `root`, divided by commas, semicolons or tabs as its header is. Paths are relative to its folder.

    Args:
        image_column, caption_column, split_column: the columns' names, where they are not the usual ones (path, filepath,
            image …; caption, title, text …).
        val, test: their parts, where the table has no splits.

    Raises:
        DataError: a column or a caption that is missing, or all pictures that are not there.
    """
    file = Path(root or name).resolve()
    header, rows = read_rows(file)
    image, caption = column_of(file, header, image_column, IMAGES), column_of(file, header, caption_column, CAPTIONS)
    parts: dict[str, list[tuple[str, str]]] = {"train": [], "val": [], "test": []}
    silent: list[int] = []
    for number, row in enumerate(rows, 2):
        path, words = (row[image] or "").strip(), " ".join((row[caption] or "").split())
        if not path:
            raise DataError(f"line {number} of {file} has no {image}: each line must have a picture and a caption")
        if not words:
            silent.append(number)
            continue
        split = split_of((row[split_column] or "").strip()) if split_column in header else "train"
        if split is None:
            near = nearest(row[split_column] or "", parts)
            raise DataError(f"line {number} of {file} has the split {row[split_column]!r}{near}: train, val or test")
        parts[split].append((path, words))
    if silent:
        which = ", ".join(map(str, silent[:8])) + (" …" if len(silent) > 8 else "")
        raise DataError(f"{len(silent)} lines of {file} have no {caption} ({which}): fill them in, or take them out")
    made = {split: _found(split, found, file) for split, found in parts.items()}
    if split_column in header:
        return PairData(file.stem, made["train"], made["val"], made["test"])
    return PairData(file.stem, *three_parts(made["train"], val, test, seed))


def _found(split: str, rows: list[tuple[str, str]], file: Path) -> Pairs:
    if not rows:
        return no_pairs(split)
    names, captions = said_once(rows)
    pictures: Pictures = listed(names, list(range(len(names))), [file.parent], file.parent, file)
    return pairs_of(pictures, captions)


def column_of(where: object, columns: list[str], asked: str | None, usual: tuple[str, ...]) -> str:
    """The column that was asked for, else the first usual one.

    Raises:
        DataError: there is none.
    """
    if asked is not None and asked not in columns:
        raise DataError(f"{where} has no column {asked!r}{nearest(asked, columns)}: it has {', '.join(columns)}")
    small = {column.lower(): column for column in reversed(columns)}
    found = asked or next((small[column] for column in usual if column in small), None)
    if found is None:
        option = "caption_column" if usual is CAPTIONS else "image_column"
        what = "captions" if usual is CAPTIONS else "pictures"
        raise DataError(
            f"{where} has the columns {', '.join(columns)}, and none that is known to hold {what}: say with {option} which does"
        )
    return found
