"""A folder of pictures, with the caption of each in a .txt of its name beside it, or in metadata.jsonl.

photos/1.jpg  photos/1.txt  …      or  photos/metadata.jsonl: {"file_name": "1.jpg", "text": "a cat on a red chair"}
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import torch

from peft_data import huggingface
from peft_data.base import Pictures
from peft_data.errors import DataError, listing
from peft_data.pairs.base import Captions, PairData, no_pairs, pairs_of, three_parts
from peft_data.pairs.table import CAPTIONS
from peft_data.pictures import is_picture
from peft_data.splits import split_of
from peft_data.texts import read_lines
from peft_data.walk import LeftOut, files_in, folders_in

NAMES: dict[str, str] = {}
METADATA = "metadata.jsonl"


def claims(path: Path) -> bool:
    """Whether it is a folder that is none of shards."""
    return path.is_dir() and not any(path.glob("*.tar")) and not huggingface.claims(path)


def load(name: str, root: str | None, seed: int, *, val: float = 0.1, test: float = 0.1) -> PairData:
    """The folder `root`: folders `train`, `val`, `test` in it are the splits; without them the seed draws them. Each line of a
    .txt is a caption. Pictures without a caption are an error that names them.

    Args:
        val, test: their parts, where there are no such folders.

    Raises:
        DataError: no picture, or one without a caption.
    """
    folder = Path(root or name).resolve()
    left_out = LeftOut()
    places = {split: path for path in folders_in(folder, left_out) if (split := split_of(path.name))}
    if "train" not in places:
        pictures, captions = _read(folder, folder, left_out)
        parts = three_parts(pairs_of(pictures, captions), val, test, seed)
    else:
        found = {split: _read(path, folder, left_out, split) for split, path in places.items()}
        parts = tuple(
            pairs_of(*found[split]) if split in found else no_pairs(split) for split in ("train", "val", "test")
        )
    left_out.kinds.pop(".txt", None)
    left_out.kinds.pop(".jsonl", None)
    return PairData(name, *parts, notes=tuple(left_out.notes(folder)))


def _read(folder: Path, root: Path, left_out: LeftOut, split: str = "") -> tuple[Pictures, list[Captions]]:
    files = files_in(folder, is_picture, left_out)
    if not files:
        raise DataError(f"there is no picture in {folder}: put pictures there, and a .txt with its caption beside each")
    told = _metadata(folder / METADATA, set(files)) if (folder / METADATA).is_file() else {}
    captions = [told.get(file) or _beside(file) for file in files]
    silent = [str(file) for file, found in zip(files, captions, strict=True) if not found]
    if len(silent) == len(files):
        raise DataError(
            f"no picture in {folder} has a caption: write it into a .txt beside each (1.jpg, 1.txt), or into {METADATA}"
        )
    if silent:
        raise DataError(
            f"{len(silent)} of {len(files)} pictures have no caption, give them a .txt or take them out:{listing(silent)}"
        )
    return Pictures(files, torch.arange(len(files)), root=root, split=split), captions


def _beside(file: Path) -> Captions:
    text = file.with_suffix(".txt")
    return tuple(" ".join(line.split()) for _, line in read_lines(text, "captions")) if text.is_file() else ()


def _metadata(path: Path, files: set[Path]) -> dict[Path, Captions]:
    found: dict[Path, Captions] = {}
    for number, line in read_lines(path, "captions"):
        try:
            row = json.loads(line)
        except ValueError:
            row = None
        named = row.get("file_name") if isinstance(row, dict) else None
        words = next((as_captions(row[key]) for key in CAPTIONS if key in row), ()) if isinstance(row, dict) else ()
        if not isinstance(named, str) or not words:
            raise DataError(f'line {number} of {path} must be like {{"file_name": "a.png", "text": "a caption"}}')
        file = path.parent / named
        if file not in files:
            raise DataError(f"line {number} of {path} names {named}, which is no picture there: put it in place")
        found[file] = found.get(file, ()) + words
    return found


def as_captions(value: object) -> Captions:
    """A caption, or a list of captions, without those that are empty."""
    texts: Sequence = value if isinstance(value, (list, tuple)) else [value]
    texts = [text.get("raw", "") if isinstance(text, dict) else text for text in texts]
    return tuple(words for text in texts if isinstance(text, str) and (words := " ".join(text.split())))
