"""Pictures to train on: a folder, their captions beside them or in metadata.jsonl, checked before anything else is done."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from peft_data.errors import listing
from peft_data.pictures import UNREADABLE, is_picture, read_picture
from PIL import Image

from peft_core.errors import PeftError
from peft_core.jobs.runs.process import tell

METADATA = "metadata.jsonl"
_CAPTION_KEYS = ("text", "caption", "prompt")


@dataclass(frozen=True)
class Picture:
    """One picture: a file, or 8-bit RGB already in memory; its caption where it has one; its size in pixels."""

    source: Path | Image.Image
    caption: str | None
    name: str
    height: int = 0
    width: int = 0

    def read(self) -> Image.Image:
        """8-bit RGB, upright."""
        return read_picture(self.source)

    def digest(self) -> str:
        """A name for what it shows."""
        content = self.source.read_bytes() if isinstance(self.source, Path) else self.source.tobytes()
        return hashlib.sha256(content + str((self.height, self.width)).encode()).hexdigest()


def open_pictures(data: str) -> list[Picture]:
    """The pictures of a folder, of one file, or of a drawn subject (`world/subjects/0`), checked.

    Raises:
        PeftError: no such folder, no picture in it, or pictures that cannot be read (all are named).
    """
    if data.startswith("world/"):
        return _drawn(data)
    path = Path(data).expanduser()
    if not path.exists():
        raise PeftError(f"there is no folder {path}: give one with pictures, or world/subjects/0.")
    folder = path if path.is_dir() else path.parent
    files = sorted(file for file in path.rglob("*") if is_picture(file)) if path.is_dir() else [path]
    if not files:
        raise PeftError(f"there is no picture in {path}.")
    captions = read_captions(folder, files)
    with ThreadPoolExecutor(min(8, (os.cpu_count() or 1))) as pool:
        found = list(pool.map(_check, files))
    broken = [f"{file} ({size})" for file, size in zip(files, found, strict=True) if isinstance(size, str)]
    if broken:
        raise PeftError(
            f"{len(broken)} of {len(files)} pictures cannot be read, take them out or get them again:{listing(broken)}"
        )
    return [
        Picture(file, captions.get(file), file.relative_to(folder).as_posix(), *size)  # type: ignore[misc]
        for file, size in zip(files, found, strict=True)
    ]


def _check(file: Path) -> tuple[int, int] | str:
    try:
        image = read_picture(file)
    except UNREADABLE as error:
        return str(error).partition("\n")[0] or type(error).__name__
    return image.height, image.width


def read_captions(folder: Path, files: Sequence[Path]) -> dict[Path, str]:
    """Captions by file, of metadata.jsonl (`{"file_name": …, "text": …}` a line) and of `.txt` files beside the pictures.

    Raises:
        PeftError: a line that is no such object, or that names a file which is not there.
    """
    found: dict[Path, str] = {}
    known = set(files)
    metadata = folder / METADATA
    if metadata.is_file():
        for number, line in enumerate(metadata.read_text(encoding="utf-8").splitlines(), 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
                file = folder / row["file_name"]
                text = next(row[key] for key in _CAPTION_KEYS if isinstance(row.get(key), str))
            except (ValueError, KeyError, TypeError, AttributeError, StopIteration) as error:
                raise PeftError(
                    f'line {number} of {metadata} must be like {{"file_name": "a.png", "text": "a caption"}}.'
                ) from error
            if file not in known:
                raise PeftError(f"line {number} of {metadata} names {row['file_name']}, which is no picture there.")
            found[file] = text.strip()
    for file in files:
        beside = file.with_suffix(".txt")
        if beside.is_file() and (text := " ".join(beside.read_text(encoding="utf-8").split())):
            found[file] = text
    return found


def say_if_small(pictures: Sequence[Picture], side: int) -> None:
    """Says once how many pictures must be enlarged to be trained on."""
    small = [p for p in pictures if p.height * p.width < side * side]
    if small:
        first = small[0]
        tell(
            f"note: {len(small)} of {len(pictures)} pictures are smaller than the training size, {side} × {side} pixels, "
            f"and are enlarged (the first is {first.name}, {first.width} × {first.height})"
        )


def _drawn(name: str) -> list[Picture]:
    from peft_data.world.subjects import draw_subject, number_of

    drawn = draw_subject(number_of(name)).pictures.permute(0, 2, 3, 1).contiguous().numpy()
    return [
        Picture(Image.fromarray(pixels), None, f"{name}/{number:02d}", *pixels.shape[:2])
        for number, pixels in enumerate(drawn)
    ]
