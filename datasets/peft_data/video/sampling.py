"""Which frames of a clip are taken: dense (a window) and uniform (a frame a segment), in training and in views at test."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from peft_data.errors import DataError, nearest


@dataclass(frozen=True)
class Sampling:
    """T frames of a clip of L.

    dense: T frames, `stride` apart, within a window of W = T · stride (Kinetics' way; SlowFast, VideoMAE, AIM). In training
    the window starts anywhere from 0 to max(0, L − W); view v of V starts at max(0, L − W) · v / (V − 1), a single one in
    the middle.

    uniform: one frame from each of T equal segments (TSN, Wang et al., ECCV 2016; SSv2's way). In training any frame of
    the segment, at test that at the part (v + ½) / V of it: a single view takes the centre.

    Where the clip is too short, dense repeats the last frame and uniform repeats frames within.

    Args:
        frames: T.
        kind: dense or uniform.
        stride: of dense: frames from one to the next.
        views: V, windows (or places in the segment) at test, whose scores are averaged.
        crops: squares cut from each frame at test: 1, the centre, or 3, along the longer side.
        decoder: what reads video files, a name in `peft_data.video.decoding.DECODERS`.
    """

    frames: int = 8
    kind: Literal["uniform", "dense"] = "uniform"
    stride: int = 8
    views: int = 1
    crops: Literal[1, 3] = 1
    decoder: Literal["pyav", "torchcodec"] = "pyav"

    def __post_init__(self) -> None:
        if self.kind not in ("uniform", "dense"):
            near = nearest(self.kind, ("uniform", "dense"))
            raise DataError(f"there is no sampling {self.kind!r}{near}: uniform or dense")
        if min(self.frames, self.stride, self.views) < 1 or self.crops not in (1, 3):
            raise DataError(
                f"frames {self.frames}, stride {self.stride} and views {self.views} must be 1 or more, and crops "
                f"{self.crops} 1 or 3"
            )

    @property
    def span(self) -> int:
        """Frames a clip must have so that none is taken twice."""
        return (self.frames - 1) * self.stride + 1 if self.kind == "dense" else self.frames

    def train(self, length: int, generator: torch.Generator) -> Tensor:
        """Indices T, drawn from the generator."""
        if self.kind == "dense":
            start = int(torch.rand((), generator=generator, dtype=torch.float64) * (self._room(length) + 1))
            return self._window(start, length)
        return self._segments(torch.rand(self.frames, generator=generator, dtype=torch.float64), length)

    def test(self, length: int) -> Tensor:
        """Indices V T."""
        rows = []
        for view in range(self.views):
            if self.kind == "dense":
                part = view / (self.views - 1) if self.views > 1 else 0.5
                rows.append(self._window(int(self._room(length) * part), length))
            else:
                part = torch.full((self.frames,), (view + 0.5) / self.views, dtype=torch.float64)
                rows.append(self._segments(part, length))
        return torch.stack(rows)

    def _room(self, length: int) -> int:
        return max(0, length - self.frames * self.stride)

    def _window(self, start: int, length: int) -> Tensor:
        return (start + torch.arange(self.frames) * self.stride).clamp(max=length - 1)

    def _segments(self, part: Tensor, length: int) -> Tensor:
        places = (torch.arange(self.frames, dtype=torch.float64) + part) * (length / self.frames)
        return places.long().clamp(max=length - 1)
