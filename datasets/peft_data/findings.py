"""What is odd about a user's own data and does not stop a run: told once, in the data's notes."""

from __future__ import annotations

import hashlib
import html
import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from peft_data.base import ClassificationData, Pictures

MOST_FILES, MOST_BYTES, WHOLE = 50_000, 1 << 30, 8 << 20
"""Same pictures are looked for among so many files at most, by reading so many bytes at most; a file above 8 MiB counts by
its beginning, middle and end."""


def same_name(name: str) -> str:
    """A class name as one form of Unicode (NFC): macOS writes `ä` in file names as two signs."""
    return unicodedata.normalize("NFC", name)


def alike(names: Iterable[str]) -> list[tuple[str, ...]]:
    """Different names that read alike: `Apple` and `apple`, `M&amp;M` and `M&M`, `Blue_Ball` and `Blue Ball`."""
    groups: dict[str, list[str]] = {}
    for name in dict.fromkeys(names):
        bare = unicodedata.normalize("NFKC", html.unescape(name)).casefold()
        groups.setdefault(re.sub(r"[\s_-]+", " ", bare).strip(), []).append(name)
    return [tuple(group) for group in groups.values() if len(group) > 1]


def with_findings(
    data: ClassificationData, notes: Sequence[str] = (), left_out: int = 0, drawn: Sequence[str] = ()
) -> ClassificationData:
    """The data with what is odd about it among its notes.

    Told are class names that read alike, classes without a picture to train on or in a split that the seed drew, the same
    picture in what is trained and what is tested on, and the same picture under two classes.

    Args:
        notes: what the reading of the files noted, told first.
        left_out: how many files it passed over.
        drawn: the splits that the seed drew.
    """
    found = [*data.notes, *notes, *_alike(data), *_without(data, ("train", *drawn)), *_twice(data)]
    return replace(data, notes=tuple(found), left_out=data.left_out + left_out)


def _alike(data: ClassificationData) -> list[str]:
    pairs = [" and ".join(map(repr, group)) for group in alike(data.class_names)]
    return (
        [f"these class names read alike: {_few(pairs)}; if they mean one class, join their pictures"] if pairs else []
    )


def _without(data: ClassificationData, splits: Sequence[str]) -> list[str]:
    lines = []
    for split in splits:
        part: Pictures = getattr(data, split)
        counts = data.counts(part).tolist()
        empty = [name for name, count in zip(data.class_names, counts, strict=True) if not count]
        if len(part) and empty:
            lines.append(
                f"{split} has none of the {part.kind} of {len(empty)} of {len(counts)} classes, which have too few: {_few(empty)}"
            )
    return lines


def _twice(data: ClassificationData) -> list[str]:
    parts = {split: getattr(data, split) for split in ("train", "val", "test")}
    if not all(part.is_files for part in parts.values()) or sum(map(len, parts.values())) > MOST_FILES:
        return []
    rows = [(part.items[i], split, label, part, i) for split, part in parts.items()
            for i, label in enumerate(part.labels.tolist())]  # fmt: skip
    crossing, two = [], []
    for same in same_files([row[0] for row in rows]):
        group = [rows[place] for place in same]
        tested = next((row for row in group if row[1] == "test"), None)
        trained = next((row for row in group if row[1] != "test"), None)
        if tested and trained:
            crossing.append(f"{_name(tested)} is {_name(trained)}")
        other = next((row for row in group if row[2] != group[0][2]), None)
        if other:
            two.append(f"{_name(group[0])} is {data.said(group[0][2])} and {_name(other)} {data.said(other[2])}")
    lines = []
    if crossing:
        are = "one picture is" if len(crossing) == 1 else f"{len(crossing)} pictures are"
        lines.append(
            f"{are} both in what is trained on and in test, so that the score is too good: {_few(crossing, 2)}"
        )
    if two:
        has = "one picture has" if len(two) == 1 else f"{len(two)} pictures have"
        lines.append(f"{has} two classes: {_few(two, 2)}")
    return lines


def _name(row: tuple) -> str:
    return row[3].name(row[4])


def same_files(paths: Sequence[Path]) -> list[list[int]]:
    """Groups of places whose files hold the same bytes, within `MOST_BYTES` of reading."""
    sizes: dict[int, list[int]] = {}
    for place, path in enumerate(paths):
        try:
            if path.is_file():
                sizes.setdefault(path.stat().st_size, []).append(place)
        except OSError:
            continue  # what cannot be read is told where it is decoded
    read = 0
    groups: dict[tuple[int, bytes], list[int]] = {}
    for size, places in sizes.items():
        if len(places) < 2 or not size:
            continue
        read += min(size, WHOLE) * len(places)
        if read > MOST_BYTES:
            break
        for place in places:
            groups.setdefault((size, _digest(paths[place], size)), []).append(place)
    return [places for places in groups.values() if len(places) > 1]


def _digest(path: Path, size: int) -> bytes:
    digest = hashlib.blake2b(digest_size=16)
    try:
        with open(path, "rb") as file:
            for start in (0,) if size <= WHOLE else (0, size // 2, size - (1 << 20)):
                file.seek(start)
                digest.update(file.read(WHOLE if size <= WHOLE else 1 << 20))
    except OSError:
        return str(path).encode("utf-8", "surrogateescape")
    return digest.digest()


def _few(words: Sequence[str], limit: int = 4) -> str:
    return ", ".join(words[:limit]) + (f" and {len(words) - limit} more" if len(words) > limit else "")
