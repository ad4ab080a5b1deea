"""Batches of clips: in training a drawn set of frames of each, at test its views."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor

from peft_data.batches import Batch, Batches, generator_of
from peft_data.errors import DataError
from peft_data.video.clips import DecodedClips, pool, views_of


class ClipBatches(Batches):
    """`Batches` of clips. With `shuffle`: uint8 `B T 3 H W`, frames (and which of three crops) drawn for each clip anew in
    each epoch, a function of (seed, epoch, clip). Without: uint8 `B V T 3 H W`, V the temporal views times the crops.

    Clips that were not decoded beforehand are decoded in threads, a step ahead of what was asked for.
    """

    pictures: DecodedClips  # type: ignore[assignment]

    def __init__(self, pictures: DecodedClips, batch_size: int, **how: Any) -> None:
        super().__init__(pictures, batch_size, **how)  # type: ignore[arg-type]
        self.waiting: dict[tuple[int, int], Future[Tensor]] = {}
        self.threads: ThreadPoolExecutor | None = None

    def soon(self, indices: Tensor) -> None:
        if self.pictures.frames is not None:
            return
        self.threads = self.threads or pool(self.pictures.workers)
        for row in indices.tolist():
            if (self.epoch, row) not in self.waiting:
                self.waiting[self.epoch, row] = self.threads.submit(self.clip, row, self.epoch)

    def take(self, indices: Tensor) -> Batch:
        clips, good = [], []
        for place, row in enumerate(indices.tolist()):
            future = self.waiting.pop((self.epoch, row), None)
            try:
                clips.append(future.result() if future else self.clip(row, self.epoch))
                good.append(place)
            except DataError as error:
                if not self.pictures.skip_broken:
                    raise DataError(
                        f"{self.pictures.names[row]} {error}: mend or remove it, or go on without it with "
                        "on_bad_image='skip' (--data.on_bad_image skip)"
                    ) from error
        if not clips:
            raise DataError(f"no clip of a whole batch can be read, the last one is {self.pictures.names[row]}")
        rows = indices[good]
        return Batch(torch.stack(clips), self.pictures.labels[rows], rows)

    def clip(self, row: int, epoch: int) -> Tensor:
        """T 3 H W in training, V T 3 H W at test."""
        sampling, crops = self.pictures.sampling, self.pictures.fit.crops
        if not self.shuffle:
            return test_views(self.pictures, row)
        chance = generator_of(self.seed, epoch, row)
        frames = self.pictures.take(row, lambda length: sampling.train(length, chance))
        return frames[:, int(torch.randint(crops, (), generator=chance))]


def test_views(pictures: DecodedClips, row: int) -> Tensor:
    """All views of a clip, V T 3 H W: the crops of each temporal view after another."""
    return views_of(pictures.take(row, lambda length: pictures.sampling.test(length).flatten()), pictures.sampling)


def batches_of(pictures: Any, batch_size: int, **how: Any) -> Batches:
    """Batches that suit what was decoded: pictures or clips."""
    return (ClipBatches if isinstance(pictures, DecodedClips) else Batches)(pictures, batch_size, **how)
