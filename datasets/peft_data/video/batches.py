"""Batches of clips: in training a drawn set of frames of each, at test its views."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from peft_data.ahead import Ahead, FrameBatches
from peft_data.batches import Batches, generator_of
from peft_data.frames import FramedPictures
from peft_data.video.clips import DecodedClips, views_of
from peft_data.video.frames import FramedClips


class ClipBatches(Ahead):
    """`Batches` of clips. With `shuffle`: uint8 `B T 3 H W`, frames (and which of three crops, or which part) drawn for each
    clip anew in each epoch, a function of (seed, epoch, clip). Without: uint8 `B V T 3 H W`, V the temporal views times the
    crops.

    Clips that were not decoded beforehand are decoded in threads, a step ahead of what was asked for.
    """

    pictures: DecodedClips
    what = "clip"

    def left_out(self, row: int, reason: str) -> bool:
        if self.pictures.skip_broken:
            self.pictures.broken[self.pictures.names[row]] = reason
        return self.pictures.skip_broken

    def soon(self, indices: Tensor) -> None:
        if self.pictures.decodes:
            super().soon(indices)

    def one(self, row: int, epoch: int) -> Tensor:
        """T 3 H W in training, V T 3 H W at test."""
        sampling, crops = self.pictures.sampling, self.pictures.fit.crops
        if not self.shuffle:
            return test_views(self.pictures, row)
        chance = generator_of(self.seed, epoch, row)
        if isinstance(self.pictures, FramedClips):
            return self.pictures.cut(row, lambda length: sampling.train(length, chance), chance)
        frames = self.pictures.take(row, lambda length: sampling.train(length, chance))
        return frames[:, int(torch.randint(crops, (), generator=chance))]


def test_views(pictures: DecodedClips, row: int) -> Tensor:
    """All views of a clip, V T 3 H W: the crops of each temporal view after another."""
    return views_of(pictures.take(row, lambda length: pictures.sampling.test(length).flatten()), pictures.sampling)


def batches_of(pictures: Any, batch_size: int, **how: Any) -> Batches:
    """Batches that suit what was decoded: pictures, pictures in their own frames, or clips."""
    if isinstance(pictures, DecodedClips):
        return ClipBatches(pictures, batch_size, **how)
    if isinstance(pictures, FramedPictures):
        return FrameBatches(pictures, batch_size, **how)
    return Batches(pictures, batch_size, **how)
