"""Decoded pictures on disk: one file, written beside its place and moved there when it is whole.

The file is the pictures' bytes one after another, then a JSON object (how many bytes; what was left out and why; what else
is needed), then its length as 8 bytes.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock

from peft_data.base import Pictures
from peft_data.errors import DataError
from peft_data.reach import cache_root

VERSION = 2
SUFFIX = ".u8"


def default_folder() -> Path:
    """Where decoded pictures go that do not fit into memory and for which no folder is named."""
    return cache_root() / "pictures"


def cache_key(pictures: Pictures, fit: object) -> str | None:
    """A name for these pictures at this size (or what else is done to them): it changes with any file's path, size or time
    of change.

    None where it cannot be known what the pictures are: a sequence without a `fingerprint`.
    """
    digest = hashlib.sha256(f"{VERSION} {fit}".encode())
    if pictures.is_files:
        for path in pictures.files:
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


def fingerprint(pictures: Pictures, answers: bytes | None = None) -> str | None:
    """A name for what a split holds, with its labels or what these stand for; None where it cannot be known."""
    answers = pictures.labels.numpy().tobytes() if answers is None else answers
    if isinstance(pictures.items, torch.Tensor):
        key = hashlib.sha256(pictures.items.cpu().contiguous().numpy().data).hexdigest()
    else:
        key = cache_key(pictures, "")
    return key and hashlib.sha256(key.encode() + answers).hexdigest()[:32]


def read(path: Path) -> tuple[torch.Tensor, dict[str, Any]] | None:
    """The bytes, uint8 `M`, mapped from the file, and the notes; None where there is no whole file."""
    try:
        with open(path, "rb") as file:
            end = file.seek(-8, os.SEEK_END)
            length = int.from_bytes(file.read(8), "little")
            file.seek(end - length)
            notes = json.loads(file.read(length))
        if not isinstance(notes, dict) or notes["bytes"] != end - length:
            return None
        notes["left_out"] = {int(row): str(reason) for row, reason in notes["left_out"]}
    except (OSError, ValueError, KeyError, TypeError, RecursionError, MemoryError):
        return None
    size = end - length
    return torch.from_file(str(path), shared=False, size=size, dtype=torch.uint8) if size else torch.empty(0), notes


def write(path: Path, pieces: Iterable[np.ndarray], notes: Callable[[], dict[str, Any]], size: int) -> None:
    """Writes the pieces (uint8) to `path`; an existing file stays whole until the new one is.

    Args:
        notes: gives what is noted behind the pieces, asked after the last one; `left_out` of it is row → reason.
        size: the bytes that the pieces will come to at most.

    Raises:
        DataError: the disk is full or the folder cannot be written.
    """
    with _said_plainly(path.parent):
        free = shutil.disk_usage(path.parent).free
    if free < size:
        raise DataError(
            f"the decoded pictures need {_gb(size)} but {path.parent} has {_gb(free)} free: make room there or name "
            "another folder with cache_dir"
        )
    part = path.with_suffix(".part")
    total = 0
    try:
        with _said_plainly(path.parent), open(part, "wb") as file:
            for piece in pieces:
                file.write(np.ascontiguousarray(piece).data)
                total += piece.nbytes
            noted = notes()
            text = json.dumps(noted | {"bytes": total, "left_out": sorted(noted["left_out"].items())}).encode()
            file.write(text + len(text).to_bytes(8, "little"))
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def kept(
    folder: Path, key: str, pieces: Callable[[], Iterable[np.ndarray]], notes: Callable[[], dict[str, Any]], size: int
) -> tuple[torch.Tensor, dict[str, Any]]:
    """The bytes and notes under `key`, made where there is no whole file; a whole one is read without writing anything, so
    that a folder that cannot be written serves too. Processes that want the same wait for one another.

    Raises:
        DataError: as `write`.
    """
    if found := read(folder / f"{key}{SUFFIX}"):
        return found
    with locked(folder, key) as path:
        if (found := read(path)) is None:
            write(path, pieces(), notes, size)
            found = read(path)
    if found is None:
        raise DataError(f"{path} was changed while it was written: remove it and try again")
    return found


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
        yield folder / f"{key}{SUFFIX}"
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
    return f"{size / 2**30:.1f} GiB" if size >= 2**29 else f"{size / 2**20:.1f} MiB"
