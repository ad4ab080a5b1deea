"""Training pictures that stand in several classes."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Any

from peft_data.base import Pictures
from peft_data.findings import same_files
from torch import Tensor

from peft_core.jobs.runs.saying import few

SHOWN = 4


def same_in_two_classes(pictures: Pictures) -> str | None:
    """A note on pictures of the same bytes under different labels; None where there are none, or nothing to compare."""
    labels = pictures.labels.tolist()
    pairs = []
    for rows in _same(pictures):
        other = next((row for row in rows if labels[row] != labels[rows[0]]), None)
        if other is not None:
            pairs.append(f"{pictures.name(rows[0])} = {pictures.name(other)}")
    if not pairs:
        return None
    return f"the same picture stands in two classes, so one of its labels is wrong: {few(pairs, SHOWN)}"


def _same(pictures: Pictures) -> Iterable[list[int]]:
    """Groups of rows whose pictures are the same bytes."""
    items: Any = pictures.items
    if not isinstance(items, Tensor):
        return same_files(items) if pictures.is_files else []
    groups: dict[bytes, list[int]] = {}
    for row, item in enumerate(items):
        groups.setdefault(hashlib.sha256(item.contiguous().numpy().data).digest(), []).append(row)
    return groups.values()
