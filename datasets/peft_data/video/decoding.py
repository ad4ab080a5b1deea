"""Frames of a clip by their number: a video file by PyAV or torchcodec, seeking to what is needed, or a folder of pictures."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

from PIL import Image

from peft_data.errors import DataError, nearest
from peft_data.pictures import UNREADABLE, is_picture, read_picture
from peft_data.video.pyav_video import Video, words_of

SUFFIXES = frozenset(
    ".mp4 .avi .divx .mkv .webm .mov .qt .m4v .mpg .mpeg .mpe .m2v .vob .wmv .asf .flv .f4v .3gp .3g2 .ts .mts .m2ts .m2t "
    ".mxf .ogv .ogm".split()
)


def is_video(path: Path) -> bool:
    """Whether a file's name is that of a video (and it is not hidden)."""
    return path.suffix.lower() in SUFFIXES and not path.name.startswith(".")


class Clip(Protocol):
    """An open clip of `length` frames; `read` gives those asked for, in that order, as RGB pictures. `substituted` counts
    those of them that cannot be decoded, in whose place the one before was given."""

    length: int
    substituted: int

    def read(self, indices: Sequence[int]) -> list[Image.Image]: ...
    def __enter__(self) -> Clip: ...
    def __exit__(self, kind: Any, value: Any, trace: TracebackType | None) -> None: ...


def open_clip(path: Path, decoder: str = "pyav") -> Clip:
    """A video file, or a folder whose pictures are the frames.

    Args:
        decoder: what reads video files, a name in `DECODERS`.

    Raises:
        DataError: says what is wrong in a few words that follow the file's name: "is empty", "has no picture, only sound".
    """
    if path.is_dir():
        return FrameFolder(path)  # type: ignore
    if not path.exists():
        raise DataError("is missing")
    if not path.stat().st_size:
        raise DataError("is empty")
    return DECODERS[decoder](path)


def decoder_of(name: str) -> Callable[[Path], Clip]:
    """What opens video files.

    Raises:
        DataError: there is none of that name, or it cannot be used here.
    """
    if name not in DECODERS:
        raise DataError(f"there is no decoder {name!r}{nearest(name, DECODERS)}: {' or '.join(DECODERS)}")
    if name == "torchcodec":
        try:
            import torchcodec.decoders  # noqa: F401 # type: ignore
        except (ImportError, OSError, RuntimeError) as error:  # without FFmpeg's libraries it says so in many lines
            raise DataError(
                "decoder torchcodec cannot be used here: pip install torchcodec, and FFmpeg 4 to 8 as shared libraries; or "
                "leave it at pyav, which brings its own"
            ) from error
    return DECODERS[name]


class FrameFolder:
    """A folder of pictures, in the order of the numbers in their names."""

    substituted = 0

    def __init__(self, path: Path) -> None:
        def number(file: Path) -> tuple[list[int], str]:
            return [int(digits) for digits in re.findall(r"\d+", file.stem)], file.name

        self.files = sorted((file for file in path.iterdir() if is_picture(file) and file.is_file()), key=number)
        self.length = len(self.files)
        if not self.files:
            raise DataError("has no frames")

    def read(self, indices: Sequence[int]) -> list[Image.Image]:
        pictures = {}
        for index in set(indices):
            try:
                pictures[index] = read_picture(self.files[index])
            except UNREADABLE as error:
                raise DataError(f"has a broken frame {self.files[index].name} ({error})") from error
        return [pictures[index] for index in indices]

    def __enter__(self) -> FrameFolder:
        return self

    def __exit__(self, *problem: object) -> None:
        pass


class TorchcodecVideo:
    """A video file read by torchcodec: the same frames by the same numbers as `Video` gives, in one thread."""

    substituted = 0

    def __init__(self, path: Path) -> None:
        from torchcodec.decoders import VideoDecoder  # type: ignore

        try:
            self.decoder = VideoDecoder(path, num_ffmpeg_threads=1)
        except (RuntimeError, ValueError) as error:
            raise DataError(f"is no video that can be read ({words_of(error)})") from error
        self.length = len(self.decoder)
        if not self.length:
            raise DataError("has no frames")

    def read(self, indices: Sequence[int]) -> list[Image.Image]:
        wanted = sorted(set(indices))
        try:
            frames = self.decoder.get_frames_at(wanted).data
        except (RuntimeError, IndexError) as error:
            raise DataError(f"is broken ({words_of(error)})") from error
        shown = {i: Image.fromarray(frame.numpy()) for i, frame in zip(wanted, frames.movedim(1, -1), strict=True)}
        return [shown[index] for index in indices]

    def __enter__(self) -> TorchcodecVideo:
        return self

    def __exit__(self, *problem: object) -> None:
        pass


DECODERS: dict[str, Callable[[Path], Clip]] = {"pyav": Video, "torchcodec": TorchcodecVideo}  # type: ignore
