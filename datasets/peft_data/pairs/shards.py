"""Shards of webdataset: .tar files whose members 000123.jpg and 000123.txt (or .json, with a caption in it) are a pair."""

from __future__ import annotations

import io
import json
import re
import tarfile
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image

from peft_data.base import Pictures
from peft_data.errors import DataError
from peft_data.pairs.base import Captions, PairData, Pairs, no_pairs, pairs_of, three_parts
from peft_data.pairs.folder import as_captions
from peft_data.pairs.table import CAPTIONS
from peft_data.pictures import is_picture
from peft_data.splits import split_of

NAMES: dict[str, str] = {}
_BRACES = re.compile(r"\{(\d+)\.\.(\d+)\}")
LARGEST = 1 << 20
"""Bytes of a caption's file that are read at most."""


def claims(path: Path) -> bool:
    """Whether it is a .tar, a folder of them, or a row of numbered ones, `shard-{000..012}.tar`."""
    return (
        path.suffix == ".tar"
        and (path.is_file() or bool(_BRACES.search(path.name)))
        or (path.is_dir() and any(path.glob("*.tar")))
    )


def load(name: str, root: str | None, seed: int, *, val: float = 0.1, test: float = 0.1) -> PairData:
    """The shards `root`. Those whose names begin with train, val or test are these splits; else the seed draws them. The shards
    are read through once for where each picture lies; pictures are read from there, nothing is unpacked.

    Args:
        val, test: their parts, where the names of shards tell no splits.

    Raises:
        DataError: a shard that is missing or damaged, or pictures without a caption.
    """
    files = shards_of(Path(root or name))
    of = {file: split_of(re.split(r"[^A-Za-z]", file.stem)[0]) for file in files}
    if set(of.values()) - {None} and "train" in of.values():
        made = {
            split: _read([file for file in files if of[file] == split], split) for split in ("train", "val", "test")
        }
        return PairData(Path(name).stem, made["train"], made["val"], made["test"])
    return PairData(Path(name).stem, *three_parts(_read(files, ""), val, test, seed))


def shards_of(path: Path) -> list[Path]:
    """The shards that are meant.

    Raises:
        DataError: one of a row is not there.
    """
    if path.is_dir():
        return sorted(path.glob("*.tar"))
    found = _BRACES.search(path.name)
    if found is None:
        return [path]
    first, last = found[1], found[2]
    names = [path.name.replace(found[0], str(n).zfill(len(first))) for n in range(int(first), int(last) + 1)]
    files = [path.with_name(each) for each in names]
    if missing := [file.name for file in files if not file.is_file()]:
        raise DataError(
            f"{len(missing)} of {len(files)} shards are not there ({missing[0]} …): fetch them, or give another range"
        )
    return files


def _read(files: Sequence[Path], split: str) -> Pairs:
    if not files:
        return no_pairs(split)
    places: list[tuple[Path, int, int]] = []
    names: list[str] = []
    captions: list[Captions] = []
    silent: list[str] = []
    for file in files:
        for key, (place, words) in _members(file).items():
            if place is None:
                continue
            if not words:
                silent.append(f"{file.name}/{key}")
                continue
            places.append((file, *place))
            names.append(f"{file.stem}/{key}")
            captions.append(words)
    if silent:
        raise DataError(
            f"{len(silent)} pictures of the shards have no caption ({silent[0]} …): each needs a .txt, or a .json with a caption"
        )
    if not places:
        raise DataError(f"there is no picture in {files[0]}: members must be called 000123.jpg and 000123.txt")
    pictures = Pictures(ShardPictures(places), torch.arange(len(places)), split=split, names=tuple(names))
    return pairs_of(pictures, captions)


def _members(file: Path) -> dict[str, tuple[tuple[int, int] | None, Captions]]:
    """Key → where its picture lies in the file (offset and size), and its captions."""
    found: dict[str, tuple[tuple[int, int] | None, Captions]] = {}
    try:
        with tarfile.open(file, "r:") as tar:
            for member in tar:
                folder, _, base = member.name.rpartition("/")
                key, _, suffix = base.partition(".")
                if not member.isfile() or not key:
                    continue
                key = f"{folder}/{key}" if folder and folder != "." else key
                place, words = found.get(key, (None, ()))
                if is_picture(Path(f"a.{suffix}")):
                    place = member.offset_data, member.size
                elif suffix in ("txt", "caption", "json") and member.size <= LARGEST:
                    inner = tar.extractfile(member)
                    words = words or _captions(inner.read() if inner else b"", suffix)
                found[key] = place, words
    except (tarfile.TarError, OSError) as error:
        raise DataError(
            f"{file} cannot be read as a shard ({error}): fetch it again (a .tar that is not compressed)"
        ) from error
    return found


def _captions(raw: bytes, suffix: str) -> Captions:
    try:
        text = raw.decode("utf-8")
        if suffix != "json":
            return as_captions(text.splitlines())
        row = json.loads(text)
    except ValueError:
        return ()
    return next((words for key in CAPTIONS if isinstance(row, dict) and (words := as_captions(row.get(key)))), ())


class ShardPictures(Sequence):
    """Pictures that lie in .tar files, each a `PIL.Image` when indexed."""

    def __init__(self, places: list[tuple[Path, int, int]]) -> None:
        self.places = places
        states = {file: file.stat() for file, _, _ in places}
        self.fingerprint = repr(
            [(str(f), state.st_size, state.st_mtime_ns) for f, state in states.items()] + [len(places)]
        )

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, i: int) -> Image.Image:
        file, offset, size = self.places[i]
        with open(file, "rb") as shard:
            shard.seek(offset)
            return Image.open(io.BytesIO(shard.read(size)))
