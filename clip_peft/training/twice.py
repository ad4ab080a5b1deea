"""Training pictures that stand in several classes."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from peft_data.base import Pictures
from torch import Tensor

SHOWN = 4


def same_in_two_classes(pictures: Pictures) -> str | None:
    """A note on pictures of the same bytes under different labels; None where there are none, or nothing to compare."""
    groups: dict[str, list[int]] = {}
    for key, row in _keys(pictures):
        groups.setdefault(key, []).append(row)
    labels = pictures.labels.tolist()
    pairs = []
    for rows in groups.values():
        other = next((row for row in rows if labels[row] != labels[rows[0]]), None)
        if other is not None:
            pairs.append(f"{pictures.name(rows[0])} = {pictures.name(other)}")
    if not pairs:
        return None
    more = f" and {len(pairs) - SHOWN} more" if len(pairs) > SHOWN else ""
    return f"the same picture stands in two classes, so one of its labels is wrong: {', '.join(pairs[:SHOWN])}{more}"


def _keys(pictures: Pictures) -> Iterator[tuple[str, int]]:
    """(hash, row) of what may stand there twice; of files, those whose sizes are the same."""
    items: Any = pictures.items
    if isinstance(items, Tensor):
        yield from ((hashlib.sha256(item.contiguous().numpy().data).hexdigest(), row) for row, item in enumerate(items))
        return
    if not pictures.is_files:
        return
    sizes: dict[int, list[int]] = {}
    for row, path in enumerate(items):
        sizes.setdefault(_size(path), []).append(row)
    for size, rows in sizes.items():
        if size >= 0 and len(rows) > 1:
            yield from ((hashlib.sha256(items[row].read_bytes()).hexdigest(), row) for row in rows)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return -1  # decoding tells of it
