"""A video file read by PyAV: frames by their number, seeking where that saves decoding."""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from peft_data.errors import DataError

_TURNS = {
    (1, 0, 0, 1): None,
    (-1, 0, 0, 1): Image.Transpose.FLIP_LEFT_RIGHT,
    (1, 0, 0, -1): Image.Transpose.FLIP_TOP_BOTTOM,
    (-1, 0, 0, -1): Image.Transpose.ROTATE_180,
    (0, 1, -1, 0): Image.Transpose.ROTATE_270,
    (0, -1, 1, 0): Image.Transpose.ROTATE_90,
    (0, 1, 1, 0): Image.Transpose.TRANSPOSE,
    (0, -1, -1, 0): Image.Transpose.TRANSVERSE,
}
"""Signs of a, b, c, d of a display matrix, which shows the pixel (x, y) at (a x + c y, b x + d y), y downwards."""


class Video:
    """A video file. Frames are counted as they are shown, whatever their rate, from the times of its packets, without
    decoding; files that keep no such times (some AVIs, bare and program streams) are decoded once to be counted.

    `read` goes to the last key frame before a wanted frame where that saves decoding, and on from there. Where a container
    has no index (transport streams) that may lie too late: then it goes back further, twice as far each time,
    until the wanted frame comes, in the end to the beginning. So what it gives is what decoding from the start gives. One
    thread decodes; several clips may be read in threads of their own.

    `substituted` counts frames that the file announces and that cannot be decoded: the one before takes their place.
    """

    def __init__(self, path: Path) -> None:
        import av
        from av.error import FFmpegError

        self.path, self.substituted = path, 0
        self._errors: tuple[type[Exception], ...] = (FFmpegError, EOFError, ValueError)
        try:
            self.container = av.open(str(path))
        except self._errors as error:
            raise DataError(f"is no video that can be read ({words_of(error)})") from error
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
            raise DataError(f"is broken ({words_of(error)})") from error

    def _index(self) -> None:
        packets = self.container.demux(self.stream)
        marks = [(p.pts, p.is_keyframe) for p in packets if p.size and not p.is_discard]
        times = {time for time, _ in marks if time is not None}
        self.times: list[int] | None = None
        kind = self.container.format.name
        if marks and len(times) == len(marks) and kind != "mpeg":  # a program stream's times are guesses behind a seek
            # a cut of a broadcast may begin between key frames
            first = self._first_time() if not marks[0][1] or "mpegts" in kind else min(times)
            if first is not None:
                self.times = sorted(time for time in times if time >= first)
                self.keys = sorted(time for time, is_key in marks if is_key and time is not None and time >= first)
                self.length = len(self.times)
        if self.times is None:
            self._rewind()
            self.length = sum(1 for _ in self.container.decode(self.stream))
        if not self.length:
            raise DataError("has no frames")
        self._rewind()

    def _first_time(self) -> int | None:
        """The time of the first frame that can be decoded."""
        self._rewind()
        return next((frame.pts for frame in self.decoded if frame.pts is not None), None)

    def _rewind(self) -> None:
        self.container.seek(0, backward=True)
        self._decode_from_here()

    def _decode_from_here(self) -> None:
        self.decoded: Iterator[Any] = self.container.decode(self.stream)
        self.next = 0

    def read(self, indices: Sequence[int]) -> list[Image.Image]:
        wanted = sorted(set(indices))
        try:
            found = self._by_time(wanted) if self.times else self._by_count(wanted)
        except self._errors as error:
            raise DataError(f"is broken ({words_of(error)})") from error
        if not found:
            raise DataError("has no frame that can be decoded")
        self.substituted += len(wanted) - len(found)
        kept = sorted(found)
        shown = {i: found[kept[max(0, bisect_right(kept, i) - 1)]] for i in wanted}
        return [shown[index] for index in indices]

    def _by_count(self, wanted: list[int]) -> dict[int, Image.Image]:
        self._reopen()
        left, found = set(wanted), {}
        for index, frame in enumerate(self.decoded):
            if index in left:
                found[index] = _picture(frame)
            if index >= wanted[-1]:
                break
        return found

    def _by_time(self, wanted: list[int]) -> dict[int, Image.Image]:
        assert self.times is not None
        frames = {index: self._at(index) for index in wanted}
        return {index: frame for index, frame in frames.items() if frame is not None}

    def _at(self, index: int) -> Image.Image | None:
        assert self.times is not None
        time = self.times[index]
        place = bisect_right(self.keys, time) - 1
        key = self.keys[max(0, place)] if self.keys else self.times[0]
        if self.next <= index and bisect_left(self.times, key) <= self.next and (image := self._onwards(time)):
            return image
        back = 1
        while place > 0:
            self.container.seek(self.keys[place], backward=True, stream=self.stream)
            self._decode_from_here()
            if image := self._onwards(time):
                return image
            place, back = place - back, 2 * back
        self._rewind()
        return self._onwards(time)

    def _onwards(self, time: int) -> Image.Image | None:
        """The frame of that time, decoding on from where it is until it has come or must have."""
        assert self.times is not None
        for frame in self.decoded:
            if frame.pts is None:
                continue
            self.next = bisect_right(self.times, frame.pts)
            if frame.pts >= time:
                return _picture(frame) if frame.pts == time else None
        return None

    def _reopen(self) -> None:
        """From the start also where the container cannot seek."""
        import av

        self.container.close()
        self.container = av.open(str(self.path))
        self.stream = self.container.streams.video[0]
        self.stream.codec_context.thread_count = 1
        self._decode_from_here()

    def __enter__(self) -> Video:
        return self

    def __exit__(self, *problem: object) -> None:
        self.container.close()


def _picture(frame: Any) -> Image.Image:
    image = frame.to_image()
    matrix = frame.side_data.get("DISPLAYMATRIX")
    if matrix is None:
        return image
    a, b, _, c, d = np.frombuffer(bytes(matrix), dtype=np.int32)[:5].tolist()
    most = max(map(abs, (a, b, c, d)), default=0) or 1
    signs = tuple(round(value / most) for value in (a, b, c, d))
    if signs in _TURNS:
        turn = _TURNS[signs]
        return image if turn is None else image.transpose(turn)
    return image.rotate(frame.rotation, expand=True)


def words_of(error: Exception) -> str:
    """A library's error in a few words."""
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return re.sub(r"^.*\.cpp:\d+, ", "", text.strip().splitlines()[0])
