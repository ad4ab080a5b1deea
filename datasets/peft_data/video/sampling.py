"""Which frames of a clip are taken: dense (a window) and uniform (a frame a segment), in training and in views at test."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from peft_data.errors import DataError, nearest

WINDOWS = ("slowfast", "mmaction", "st_adapter")


@dataclass(frozen=True)
class Sampling:
    """T frames of a clip of L.

    dense: T frames, `stride` apart (Kinetics' way). By `windows`:

    - slowfast (SlowFast, VideoMAE, AdaptFormer): a window is W = T · stride frames; in training it starts anywhere from 0 to
      max(0, L − W), view v of V starts at max(0, L − W) · v / (V − 1), a single one in the middle. Where the clip is too
      short its last frame is repeated.
    - mmaction (AIM): the same window; view v starts at (v + ½)(L − W + 1) / V. Where the clip is too short it begins anew.
    - st_adapter: a window is W = (T − 1) · stride + 1 frames; view v starts at (L − W) v / (V − 1), rounded. Where the clip
      is too short the last frame is repeated, in training the last that was taken.

    uniform: one frame from each of T equal segments (TSN, Wang et al., ECCV 2016; SSv2's way). In training any frame of
    the segment, at test that at the part (v + ½) / V of it: a single view takes the centre. With the windows of mmaction and
    st_adapter segment s goes from round(s (L − 1) / T) to round((s + 1)(L − 1) / T), both included, and its one view is the
    middle. Where the clip is too short frames within are repeated.

    Sources: facebookresearch/SlowFast; open-mmlab/mmaction2 0.x as in taoyang1122/adapt-image-models, SampleFrames;
    linziyi96/st-adapter, video_dataset/dataset.py.

    Args:
        frames: T.
        kind: dense or uniform.
        stride: of dense: frames from one to the next.
        views: V, windows (or places in the segment) at test, whose scores are averaged.
        crops: squares cut from each frame at test: 1, the centre, or 3, along the longer side.
        decoder: what reads video files, a name in `peft_data.video.decoding.DECODERS`.
        windows: whose windows and segments.
    """

    frames: int = 8
    kind: Literal["uniform", "dense"] = "uniform"
    stride: int = 8
    views: int = 1
    crops: Literal[1, 3] = 1
    decoder: Literal["pyav", "torchcodec"] = "pyav"
    windows: Literal["slowfast", "mmaction", "st_adapter"] = "slowfast"

    def __post_init__(self) -> None:
        if self.kind not in ("uniform", "dense"):
            near = nearest(self.kind, ("uniform", "dense"))
            raise DataError(f"there is no sampling {self.kind!r}{near}: uniform or dense")
        if self.windows not in WINDOWS:
            near = nearest(str(self.windows), WINDOWS)
            raise DataError(f"there are no windows {self.windows!r}{near}: {', '.join(WINDOWS)}")
        if min(self.frames, self.stride, self.views) < 1 or self.crops not in (1, 3):
            raise DataError(
                f"frames {self.frames}, stride {self.stride} and views {self.views} must be 1 or more, and crops "
                f"{self.crops} 1 or 3"
            )
        if self.kind == "uniform" and self.windows != "slowfast" and self.views != 1:
            raise DataError(
                f"uniform sampling has one view with the windows {self.windows}, not {self.views}: use slowfast"
            )

    @property
    def span(self) -> int:
        """Frames a clip must have so that none is taken twice."""
        return (self.frames - 1) * self.stride + 1 if self.kind == "dense" else self.frames

    def train(self, length: int, generator: torch.Generator) -> Tensor:
        """Indices T, drawn from the generator."""
        if self.kind == "dense":
            start = int(torch.rand((), generator=generator, dtype=torch.float64) * (self._room(length) + 1))
            taken = start + torch.arange(self.frames) * self.stride
            if self.windows == "st_adapter":  # the last that was taken is repeated
                return torch.where(taken < length, taken, taken[taken < length].max())
            return self._within(taken, length)
        chance = torch.rand(self.frames, generator=generator, dtype=torch.float64)
        if self.windows == "slowfast":
            return self._segments(chance, length)
        first, last = self._borders(length)
        return first + (chance * (last - first + 1)).long()

    def test(self, length: int) -> Tensor:
        """Indices V T."""
        rows = []
        for view in range(self.views):
            if self.kind == "dense":
                rows.append(self._within(self._start(view, length) + torch.arange(self.frames) * self.stride, length))
            elif self.windows == "slowfast":
                part = torch.full((self.frames,), (view + 0.5) / self.views, dtype=torch.float64)
                rows.append(self._segments(part, length))
            else:
                first, last = self._borders(length)
                rows.append((first + last) // 2)
        return torch.stack(rows)

    def _start(self, view: int, length: int) -> int:
        room = self._room(length)
        if self.windows == "mmaction":
            return int((view + 0.5) * (room + 1) / self.views) if length >= self.frames * self.stride else 0
        if self.views == 1:
            return room // 2
        place = room * view / (self.views - 1)
        return round(place) if self.windows == "st_adapter" else int(place)

    def _room(self, length: int) -> int:
        window = self.span if self.windows == "st_adapter" else self.frames * self.stride
        return max(0, length - window)

    def _within(self, taken: Tensor, length: int) -> Tensor:
        return taken % length if self.windows == "mmaction" else taken.clamp(max=length - 1)

    def _segments(self, part: Tensor, length: int) -> Tensor:
        places = (torch.arange(self.frames, dtype=torch.float64) + part) * (length / self.frames)
        return places.long().clamp(max=length - 1)

    def _borders(self, length: int) -> tuple[Tensor, Tensor]:
        borders = torch.tensor([round(s * (length - 1) / self.frames) for s in range(self.frames + 1)])
        return borders[:-1], borders[1:]
