"""Frames of a clip by their number: a video file by PyAV or torchcodec, seeking to what is needed, or a folder of pictures."""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

from PIL import Image

from peft_data.errors import DataError, nearest
from peft_data.pictures import UNREADABLE, is_picture, read_picture

SUFFIXES = frozenset(
    ".mp4 .avi .divx .mkv .webm .mov .qt .m4v .mpg .mpeg .mpe .m2v .vob .wmv .asf .flv .f4v .3gp .3g2 .ts .mts .m2ts .m2t "
    ".mxf .ogv .ogm".split()
)


def is_video(path: Path) -> bool:
    """Whether a file's name is that of a video (and it is not hidden)."""
    return path.suffix.lower() in SUFFIXES and not path.name.startswith(".")


class Clip(Protocol):
    """An open clip of `length` frames; `read` gives those asked for, in that order, as RGB pictures."""

    length: int

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
        return FrameFolder(path)
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
            import torchcodec.decoders  # noqa: F401
        except (ImportError, OSError, RuntimeError) as error:  # without FFmpeg's libraries it says so in many lines
            raise DataError(
                "decoder torchcodec cannot be used here: pip install torchcodec, and FFmpeg 4 to 8 as shared libraries; or "
                "leave it at pyav, which brings its own"
            ) from error
    return DECODERS[name]


class FrameFolder:
    """A folder of pictures, in the order of the numbers in their names."""

    def __init__(self, path: Path) -> None:
        def number(file: Path) -> tuple[list[int], str]:
            return [int(digits) for digits in re.findall(r"\d+", file.stem)], file.name

        self.files = sorted((file for file in path.iterdir() if is_picture(file)), key=number)
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


class Video:
    """A video file. Frames are counted as they are shown, whatever their rate, from the times of its packets, without
    decoding; files that keep no such times (some AVIs) are decoded once to be counted.

    `read` goes to the last key frame before a wanted frame where that saves decoding, and on from there, so what it
    gives is what decoding from the start gives. One thread decodes; several clips may be read in threads of their own.
    """

    def __init__(self, path: Path) -> None:
        import av

        self.path = path
        self._errors: tuple[type[Exception], ...] = (av.error.FFmpegError, EOFError, ValueError)
        try:
            self.container = av.open(str(path))
        except self._errors as error:
            raise DataError(f"is no video that can be read ({_words(error)})") from error
        try:
            if not self.container.streams.video:
                raise DataError("has no picture, only sound" if self.container.streams.audio else "has no picture")
            self.stream = self.container.streams.video[0]
            self.stream.codec_context.thread_count = 1
            self._index()
        except DataError:
            self.container.close()
            raise
        except self._errors as error:
            self.container.close()
            raise DataError(f"is broken ({_words(error)})") from error

    def _index(self) -> None:
        packets = self.container.demux(self.stream)
        marks = [(p.pts, p.is_keyframe) for p in packets if p.size and not p.is_discard]
        times = {time for time, _ in marks if time is not None}
        self.times: list[int] | None = None
        if marks and len(times) == len(marks):
            self.times = sorted(times)
            self.keys = sorted(time for time, is_key in marks if is_key and time is not None)
            self.length = len(self.times)
        else:
            self._rewind()
            self.length = sum(1 for _ in self.container.decode(self.stream))
        if not self.length:
            raise DataError("has no frames")
        self._rewind()

    def _rewind(self) -> None:
        self.container.seek(0, backward=True)
        self.decoded: Iterator[Any] = self.container.decode(self.stream)
        self.next = 0

    def read(self, indices: Sequence[int]) -> list[Image.Image]:
        wanted = sorted(set(indices))
        try:
            found = self._by_time(wanted) if self.times else self._by_count(wanted)
        except self._errors as error:
            raise DataError(f"is broken ({_words(error)})") from error
        if not found:
            raise DataError("has no frame that can be decoded")
        # a frame that the file announces and does not hold: the one before it stays on the screen
        kept = sorted(found)
        shown = {i: found[kept[max(0, bisect_right(kept, i) - 1)]] for i in wanted}
        return [shown[index] for index in indices]

    def _by_count(self, wanted: list[int]) -> dict[int, Image.Image]:
        self._rewind()
        left, found = set(wanted), {}
        for index, frame in enumerate(self.decoded):
            if index in left:
                found[index] = _picture(frame)
            if index >= wanted[-1]:
                break
        return found

    def _by_time(self, wanted: list[int]) -> dict[int, Image.Image]:
        assert self.times is not None
        found: dict[int, Image.Image] = {}
        for index in wanted:
            time = self.times[index]
            place = bisect_right(self.keys, time) - 1
            key = self.keys[max(0, place)] if self.keys else self.times[0]
            if self.next > index or bisect_left(self.times, key) > self.next:
                self.container.seek(key, backward=True, stream=self.stream)
                self.decoded = self.container.decode(self.stream)
            for frame in self.decoded:
                if frame.pts is None:
                    continue
                self.next = bisect_right(self.times, frame.pts)
                if frame.pts >= time:
                    if frame.pts == time:
                        found[index] = _picture(frame)
                    break
        return found

    def __enter__(self) -> Video:
        return self

    def __exit__(self, *problem: object) -> None:
        self.container.close()


class TorchcodecVideo:
    """A video file read by torchcodec: the same frames by the same numbers as `Video` gives, in one thread."""

    def __init__(self, path: Path) -> None:
        from torchcodec.decoders import VideoDecoder

        try:
            self.decoder = VideoDecoder(path, num_ffmpeg_threads=1)
        except (RuntimeError, ValueError) as error:
            raise DataError(f"is no video that can be read ({_words(error)})") from error
        self.length = len(self.decoder)
        if not self.length:
            raise DataError("has no frames")

    def read(self, indices: Sequence[int]) -> list[Image.Image]:
        wanted = sorted(set(indices))
        try:
            frames = self.decoder.get_frames_at(wanted).data
        except (RuntimeError, IndexError) as error:
            raise DataError(f"is broken ({_words(error)})") from error
        shown = {i: Image.fromarray(frame.numpy()) for i, frame in zip(wanted, frames.movedim(1, -1), strict=True)}
        return [shown[index] for index in indices]

    def __enter__(self) -> TorchcodecVideo:
        return self

    def __exit__(self, *problem: object) -> None:
        pass


DECODERS: dict[str, Callable[[Path], Clip]] = {"pyav": Video, "torchcodec": TorchcodecVideo}


def _picture(frame: Any) -> Image.Image:
    image = frame.to_image()
    return image.rotate(frame.rotation, expand=True) if frame.rotation else image


def _words(error: Exception) -> str:
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return re.sub(r"^.*\.cpp:\d+, ", "", text.strip().splitlines()[0])
