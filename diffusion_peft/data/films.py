"""Clips to train on: a folder of videos with captions as pictures have them, or the drawn world's."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from peft_data.errors import DataError, listing
from peft_data.video.decoding import Clip, is_video, open_clip
from peft_data.walk import files_in
from PIL import Image
from torch import Tensor

from diffusion_peft.data.buckets import Crop, cut
from diffusion_peft.data.pictures import Picture, read_captions
from peft_core.errors import PeftError

WORLD = "world/motion/"


@dataclass(frozen=True)
class Film(Picture):
    """A clip: the first `count` frames of its file."""

    count: int = 1

    def frames(self, count: int | None = None) -> list[Image.Image]:
        """8-bit RGB.

        Raises:
            PeftError: the file has changed since it was looked at.
        """
        assert isinstance(self.source, Path)
        with _reading(self.source) as clip:
            return clip.read(range(self.count if count is None else count))

    def read(self) -> Image.Image:
        """The first frame."""
        return self.frames(1)[0]

    def pixels(self, crop: Crop, flip: bool) -> Tensor:
        """3·F H W."""
        return torch.stack([cut(frame, crop, flip) for frame in self.frames()], 1).flatten(0, 1)

    def digest(self) -> str:
        return f"{super().digest()} {self.count}"


def open_films(data: str, count: int) -> list[Picture]:
    """The clips of a folder, or of `world/motion/direction` and its likes, whose captions are their classes; checked.

    Raises:
        PeftError: no such folder, no video in it, videos that cannot be read or are shorter (all are named).
    """
    found = _drawn(data) if data.startswith(WORLD) else _in_folder(data)
    films: list[Picture] = []
    wrong = []
    for name, (file, caption) in found.items():
        try:
            with open_clip(file) as clip:
                length, first = clip.length, clip.read([0])[0]
        except (DataError, OSError) as error:
            wrong.append(f"{name} ({error})")
            continue
        if length < count:
            wrong.append(f"{name} (has {length} frames)")
        films.append(Film(file, caption, name, first.height, first.width, count=count))
    if wrong:
        raise PeftError(
            f"{len(wrong)} of {len(found)} clips cannot be read or have fewer than {count} frames, take them out, or lower "
            f"--frames:{listing(wrong)}"
        )
    return films


def _in_folder(data: str) -> dict[str, tuple[Path, str | None]]:
    folder = Path(data).expanduser()
    files = files_in(folder, is_video) if folder.is_dir() else []
    if not files:
        raise PeftError(f"there is no video in {folder}: give --data a folder of clips, or leave --frames out.")
    captions = read_captions(folder, files)
    return {file.relative_to(folder).as_posix(): (file, captions.get(file)) for file in files}


def _drawn(name: str) -> dict[str, tuple[Path, str | None]]:
    from peft_data.world_motion import load

    clips = load(name)
    labelled = zip(map(Path, clips.train.items), clips.train.labels.tolist(), strict=True)  # type: ignore[arg-type]
    return {f"{file.parent.name}/{file.name}": (file, clips.class_names[label]) for file, label in labelled}


@contextmanager
def _reading(file: Path) -> Iterator[Clip]:
    try:
        with open_clip(file) as clip:
            yield clip
    except DataError as error:
        raise PeftError(f"{file} {error}: get it again.") from error
