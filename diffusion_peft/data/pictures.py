"""Pictures to train on: a folder, their captions beside them or in metadata.jsonl, checked before anything else is done."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peft_data.errors import listing
from peft_data.pictures import UNREADABLE, is_picture, read_picture
from peft_data.walk import LeftOut, files_in
from PIL import Image
from torch import Tensor

from diffusion_peft.data.buckets import Crop, cut
from diffusion_peft.data.masks import OFF, apart, check_masks, find_masks, read_mask, weights_of
from peft_core.errors import PeftError
from peft_core.files import parse_json, read_text
from peft_core.jobs.runs.process import tell

METADATA = "metadata.jsonl"
_CAPTION_KEYS = ("text", "caption", "prompt")
_BESIDE = (".txt", ".jsonl", ".npz", ".caption")
"""What lies beside pictures without being left out: captions, and latents that other programs keep."""
_KOHYA = re.compile(r"(\d{1,4})_(.+)")
"""`10_sks dog`: how many times the folder's pictures count, and what they show."""


@dataclass(frozen=True)
class Picture:
    """One picture: a file, or 8-bit RGB already in memory; its caption where it has one; its size in pixels; how many times it
    counts in a pass over the pictures; the file of its mask where it has one, itself where that is its alpha channel."""

    source: Path | Image.Image
    caption: str | None
    name: str
    height: int = 0
    width: int = 0
    repeats: int = 1
    mask: Path | None = None

    def read(self) -> Image.Image:
        """8-bit RGB, upright."""
        return read_picture(self.source)

    def pixels(self, crop: Crop, flip: bool) -> Tensor:
        """C H W from −1 to 1, as it is cut."""
        return cut(self.read(), crop, flip)

    def weights(self, crop: Crop, flip: bool, size: tuple[int, int], outside: float) -> Tensor | None:
        """What each of its h w latents weighs, 1 h w; `outside` where its mask is black. None without a mask."""
        if self.mask is None or not isinstance(self.source, Path):
            return None
        return weights_of(read_mask(self.source, self.mask), crop, flip, size, outside)

    def digest(self) -> str:
        """A name for what it shows."""
        content = self.source.read_bytes() if isinstance(self.source, Path) else self.source.tobytes()
        return hashlib.sha256(content + str((self.height, self.width)).encode()).hexdigest()


def open_pictures(data: str, masks: str = OFF) -> list[Picture]:
    """The pictures of a folder, of one file, or of a drawn subject (`world/subjects/0`), checked.

    Hidden folders, what systems leave behind and folders of runs are passed over (`peft_data.walk`). In kohya's folders
    `10_sks dog` each picture counts 10 times and is called "sks dog" where it has no caption of its own. `a-masklabel.png`
    beside `a.png` is its mask.

    Args:
        masks: beside, alpha, off, or a folder of them (`data.masks`).

    Raises:
        PeftError: no such folder, no picture in it, pictures that cannot be read (all are named), captions that are no
            UTF-8.
        DataError: a folder that cannot be read, or that a run made.
    """
    if data.startswith("world/"):
        return _drawn(data)
    check_place(data)
    path = Path(data).expanduser()
    folder = path if path.is_dir() else path.parent
    left_out = LeftOut()
    files, labels = apart(files_in(path, is_picture, left_out) if path.is_dir() else [path], masks)
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
    sizes = [size for size in found if not isinstance(size, str)]
    found_masks = find_masks(files, folder, masks, labels)
    check_masks(files, sizes, found_masks)
    counted = {file: _counted(file, folder) for file in files}
    _say(folder, left_out, counted, captions)
    return [
        Picture(file, captions.get(file) or called, file.relative_to(folder).as_posix(), height, width, repeats, mask)
        for (file, (repeats, called)), (height, width), mask in zip(counted.items(), sizes, found_masks, strict=True)
    ]


def check_place(data: str) -> None:
    """Raises PeftError: no such folder or drawn subject; asked before anything heavy is loaded."""
    if data.startswith("world/"):
        from peft_data.world.subjects import number_of

        number_of(data)
    elif not Path(data).expanduser().exists():
        raise PeftError(f"there is no folder {Path(data).expanduser()}: give one with pictures, or world/subjects/0.")


def _check(file: Path) -> tuple[int, int] | str:
    try:
        image = read_picture(file)
    except UNREADABLE as error:
        return str(error).partition("\n")[0] or type(error).__name__
    return image.height, image.width


def _counted(file: Path, folder: Path) -> tuple[int, str | None]:
    """How many times a picture counts and what it is called, by kohya's name of its folder; 1 and None elsewhere."""
    parts = file.relative_to(folder).parts
    found = _KOHYA.fullmatch(parts[0]) if len(parts) > 1 else None
    return (1, None) if found is None else (int(found[1]), found[2].strip())


def _say(
    folder: Path, left_out: LeftOut, counted: dict[Path, tuple[int, str | None]], captions: dict[Path, str]
) -> None:
    """Notes on what of a folder is left out, and on what its folders' names say."""
    for suffix in _BESIDE:
        left_out.kinds.pop(suffix, None)
    for note in left_out.notes(folder):
        tell(f"note: {note}")
    for repeats, name in dict.fromkeys(found for found in counted.values() if found[1] is not None):
        those = [file for file, found in counted.items() if found == (repeats, name)]
        silent = sum(file not in captions for file in those)
        called = f'; {silent} without a caption are called "{name}"' if silent else ""
        tell(
            f"note: {repeats}_{name}: its {len(those)} pictures count {repeats} times each, as kohya's scripts read it{called}"
        )


def read_captions(folder: Path, files: Sequence[Path]) -> dict[Path, str]:
    """Captions by file, of metadata.jsonl (`{"file_name": …, "text": …}` a line) and of `.txt` files beside the pictures.

    Raises:
        PeftError: a file that is no UTF-8, a line that is no such object, or that names a file which is not there.
    """
    found: dict[Path, str] = {}
    known = set(files)
    metadata = folder / METADATA
    for number, row in read_rows(metadata) if metadata.is_file() else ():
        text = next((row[key] for key in _CAPTION_KEYS if isinstance(row.get(key), str)), None)
        if text is None or not isinstance(row.get("file_name"), str):
            raise PeftError(f'line {number} of {metadata} must be like {{"file_name": "a.png", "text": "a caption"}}.')
        file = folder / row["file_name"]
        if file not in known:
            raise PeftError(f"line {number} of {metadata} names {row['file_name']}, which is no picture there.")
        found[file] = text.strip()
    for file in files:
        beside = file.with_suffix(".txt")
        if beside.is_file() and (text := read_caption(beside)):
            found[file] = text
    return found


def read_caption(file: Path) -> str:
    """A caption of one line; "" of an empty file.

    Raises:
        PeftError: it is no UTF-8.
    """
    return " ".join(read_text(file, "write the caption anew").split())


def read_rows(file: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """(number, object) of the lines of a .jsonl file, empty ones left out.

    Raises:
        PeftError: the file is no UTF-8, or a line is no JSON object.
    """
    for number, line in enumerate(read_text(file, "write it anew").splitlines(), 1):
        if not line.strip():
            continue
        row = parse_json(line, f"line {number} of {file}", "mend it")
        if not isinstance(row, dict):
            raise PeftError(f"line {number} of {file} must be an object like {{…}}.")
        yield number, row


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
