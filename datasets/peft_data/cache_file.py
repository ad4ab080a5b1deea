"""Decoded pictures on disk: one file, written beside its place and moved there when it is whole.

The file is the uint8 pictures, `N 3 H W`, then a JSON object (what was left out and why), then its length as 8 bytes.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import torch
from filelock import FileLock

from peft_data.base import Pictures
from peft_data.errors import DataError
from peft_data.pictures import Fit

VERSION = 1


def default_folder() -> Path:
    """Where decoded pictures go that do not fit into memory and for which no folder is named."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "visual-peft" / "pictures"


def cache_key(pictures: Pictures, fit: Fit) -> str | None:
    """A name for these pictures at this size: it changes with any file's path, size or time of change.

    None where it cannot be known what the pictures are: a sequence without a `fingerprint`.
    """
    digest = hashlib.sha256(f"{VERSION} {fit}".encode())
    if pictures.is_files:
        for path in pictures.items:
            try:
                stat = path.stat()
                state = f"{stat.st_size} {stat.st_mtime_ns}"
            except OSError:
                state = "missing"
            digest.update(f"\n{path.absolute()} {state}".encode(errors="surrogateescape"))
    else:
        fingerprint = getattr(pictures.items, "fingerprint", None)
        if not fingerprint:
            return None
        digest.update(f"\n{fingerprint} {len(pictures)}".encode())
    return digest.hexdigest()[:32]


def read(path: Path, shape: tuple[int, int, int]) -> tuple[torch.Tensor, dict[int, str]] | None:
    """The pictures, mapped from the file, and what was left out; None where there is no whole file."""
    try:
        with open(path, "rb") as file:
            end = file.seek(-8, os.SEEK_END)
            length = int.from_bytes(file.read(8), "little")
            file.seek(end - length)
            notes = json.loads(file.read(length))
    except (OSError, ValueError):
        return None
    count = notes["count"]
    size = count * int(np.prod(shape))
    if size != end - length:
        return None
    images = torch.from_file(str(path), shared=False, size=size, dtype=torch.uint8) if size else torch.empty(0)
    return images.to(torch.uint8).view(count, *shape), {int(row): reason for row, reason in notes["left_out"]}


def write(path: Path, pieces: Iterable[np.ndarray], left_out: dict[int, str], size: int) -> None:
    """Writes the pieces (uint8, whole pictures) to `path`; an existing file stays whole until the new one is.

    Args:
        left_out: row → reason, read after the last piece.
        size: the bytes that the pieces will come to at most.

    Raises:
        DataError: the disk is full or the folder cannot be written.
    """
    free = shutil.disk_usage(path.parent).free
    if free < size:
        raise DataError(
            f"the decoded pictures need {_gb(size)} but {path.parent} has {_gb(free)} free: make room there or name "
            "another folder with cache_dir"
        )
    part = path.with_suffix(".part")
    pictures = 0
    try:
        with _said_plainly(path.parent), open(part, "wb") as file:
            for piece in pieces:
                file.write(np.ascontiguousarray(piece).data)
                pictures += len(piece)
            notes = json.dumps({"count": pictures, "left_out": sorted(left_out.items())}).encode()
            file.write(notes + len(notes).to_bytes(8, "little"))
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


@contextlib.contextmanager
def locked(folder: Path, key: str) -> Iterator[Path]:
    """The path that `key` has in `folder`, which only this process touches meanwhile: others wait for it.

    Raises:
        DataError: the folder cannot be written.
    """
    with _said_plainly(folder):
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / f"{key}.lock")
        lock.acquire()
    try:
        yield folder / f"{key}.u8"
    finally:
        lock.release()


@contextlib.contextmanager
def _said_plainly(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        why = error.strerror or str(error)
        raise DataError(f"decoded pictures cannot be kept in {folder} ({why}): name another with cache_dir") from error


def _gb(size: int) -> str:
    return f"{size / 2**30:.1f} GiB"
