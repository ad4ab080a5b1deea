"""What the formats share that list pictures in text files: reading a list, finding its files, naming its classes."""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Iterable, Sequence
from functools import cache
from importlib import resources
from pathlib import Path

import torch

from peft_data.base import Pictures
from peft_data.errors import DataError, listing, nearest
from peft_data.texts import read_lines


@cache
def known_names() -> dict[str, tuple[str, ...]]:
    """Class names of published data sets, in the order of their labels."""
    text = resources.files("peft_data").joinpath("class_names.json").read_text(encoding="utf-8")
    return {name: tuple(names) for name, names in json.loads(text).items()}


def read_list(path: Path, classes: int | None = None) -> tuple[list[str], list[int]]:
    """Reads lines `picture label`; the picture's name may have spaces. Blank lines do not count.

    Args:
        classes: labels must be below this, if it is known.

    Raises:
        DataError: names the line that has no label, or a label that is no whole number from 0 to classes − 1.
    """
    names, labels = [], []
    for number, line in read_lines(path, "a list of pictures"):
        name, word = line.rsplit(None, 1) if len(line.split(None, 1)) == 2 else ("", line)
        if not name:
            raise DataError(f"line {number} of {path} has no label: each line must be `picture label`, not {line!r}")
        if not is_number(word):
            raise DataError(f"line {number} of {path} has the label {word!r}: labels must be whole numbers from 0")
        if classes is not None and int(word) >= classes:
            raise DataError(f"line {number} of {path} has the label {word}: labels must be 0 to {classes - 1}")
        names.append(name)
        labels.append(int(word))
    if not names:
        raise DataError(f"{path} lists no picture: each line must be `picture label`")
    return names, labels


def is_number(word: str) -> bool:
    """Whether a word is a label: a whole number from 0, of at most nine digits."""
    return word.isascii() and word.isdigit() and len(word) < 10


def spellings(name: str) -> list[str]:
    """How a listed file may be called on this disk: as it stands, with `/` for Windows' `\\`, in the other form of Unicode."""
    forms = [name, name.replace("\\", "/")]
    forms += [unicodedata.normalize(form, each) for form in ("NFC", "NFD") for each in forms]
    return list(dict.fromkeys(forms))


def listed(
    names: Sequence[str], labels: Sequence, folders: Sequence[Path], root: Path, source: Path,
    kind: torch.dtype = torch.int64,
) -> Pictures:  # fmt: skip
    """The listed pictures, each in the first of the folders that has it.

    Args:
        source: the list, for the message.
        kind: of the labels.

    Raises:
        DataError: shows all pictures that are in none of the folders.
    """
    paths, missing = [], []
    for name in names:
        places = (folder / each for each in spellings(name) for folder in folders)
        found = next((place for place in places if is_there(place)), None)
        paths.append(found)
        if found is None:
            missing.append(str(folders[0] / name))
    if missing:
        count = "one picture is" if len(missing) == 1 else f"{len(missing)} pictures are"
        raise DataError(f"{count} listed in {source} but not there: put them in place{listing(missing)}")
    return Pictures([path for path in paths if path], torch.tensor(labels, dtype=kind), root=root)


def check_trained(source: Path, found: Iterable[Iterable[str]], classes: Sequence[str], what: str = "class") -> None:
    """Raises DataError: among the classes found in each picture is one that train has not."""
    if odd := next((name for names in found for name in names if name not in classes), None):
        raise DataError(
            f"{source} has the {what} {odd!r}, which train has not{nearest(odd, classes)}: name it as in train"
        )


def is_there(path: Path, folders_too: bool = False) -> bool:
    """Whether there is such a file; a name that no file can have (too long, with a null) is none."""
    try:
        return path.exists() if folders_too and not path.is_file() else path.is_file()
    except (OSError, ValueError):
        return False


def names_from_paths(parts: Sequence[Pictures], classes: int) -> tuple[str, ...]:
    """Class names as the pictures' folders or files tell them, else `class 0` and so on.

    A folder per class (`001.Black_footed_Albatross/…`), or file names that begin with the class (`Maine_Coon_12.jpg`),
    name the classes if every class has one such name and no two share one.
    """
    plain = tuple(f"class {label}" for label in range(classes))
    for of in (lambda path: path.parent.name, lambda path: re.sub(r"[\W_]*\d+$", "", path.stem)):
        found: dict[int, set[str]] = {}
        for part in parts:
            for path, label in zip(part.items, part.labels.tolist(), strict=True):
                found.setdefault(label, set()).add(of(path))
        words = [name for label in range(classes) for name in found.get(label, ())]
        if len(words) == len(set(words)) == classes and all(map(readable, words)):
            return tuple(map(readable, words))
    return plain


def readable(name: str) -> str:
    """A folder's name as a class name: no leading number or WordNet id, blanks for underscores."""
    return re.sub(r"^(n\d{8}|\d+)[-._ ]+", "", name).replace("_", " ").strip()
