"""Tells pictures, captions and conditions that changed since a run was trained on them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

from peft_data.walk import files_in


def fingerprint(places: Iterable[str | None]) -> str | None:
    """Of all files in these folders (and files): it changes with any one's path, size or time of change. None where nothing
    lies in files, as with drawn subjects."""
    rows = []
    for place in dict.fromkeys(Path(each).expanduser() for each in places if each is not None):
        for file in files_in(place, lambda path: True) if place.is_dir() else [place] if place.is_file() else ():
            stat = file.stat()
            rows.append(f"{file.relative_to(place.parent).as_posix()} {stat.st_size} {stat.st_mtime_ns}")
    return hashlib.sha256("\n".join(sorted(rows)).encode()).hexdigest()[:16] if rows else None
