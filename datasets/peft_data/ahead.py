"""Batches whose pictures or clips are decoded or cut in threads, a step ahead of what is asked for."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor

from peft_data.batches import Batch, Batches, generator_of
from peft_data.cache import pool
from peft_data.errors import DataError
from peft_data.frames import FramedPictures
from peft_data.pictures import UNREADABLE


class Ahead(Batches):
    """`Batches` of what `one` gives for a row and an epoch; a subclass says what that is."""

    pictures: Any
    what = "picture"

    def __init__(self, pictures: Any, batch_size: int, **how: Any) -> None:
        super().__init__(pictures, batch_size, **how)
        self.waiting: dict[tuple[int, int], Future[Tensor]] = {}
        self.threads: ThreadPoolExecutor | None = None

    def one(self, row: int, epoch: int) -> Tensor:
        raise NotImplementedError

    def left_out(self, row: int, reason: str) -> bool:
        """Whether a batch goes on without a row that cannot be read; told each time."""
        return False

    def soon(self, indices: Tensor) -> None:
        self.threads = self.threads or pool(self.pictures.workers)
        for row in indices.tolist():
            if (self.epoch, row) not in self.waiting:
                self.waiting[self.epoch, row] = self.threads.submit(self.one, row, self.epoch)

    def take(self, indices: Tensor) -> Batch:
        found, good = [], []
        for place, row in enumerate(indices.tolist()):
            future = self.waiting.pop((self.epoch, row), None)
            try:
                found.append(future.result() if future else self.one(row, self.epoch))
                good.append(place)
            except (DataError, *UNREADABLE) as error:
                if not self.left_out(row, str(error)):
                    raise DataError(
                        f"{self.pictures.names[row]} {error}: mend or remove it, or go on without it with "
                        "on_bad_image='skip' (--data.on_bad_image skip)"
                    ) from error
        if not found:
            raise DataError(
                f"no {self.what} of a whole batch can be read, the last one is {self.pictures.names[row]}: mend them"
            )
        rows = indices[good]
        return Batch(torch.stack(found), self.pictures.labels[rows], rows)


class FrameBatches(Ahead):
    """`Batches` of parts, uint8 `B 3 H W`: which part of a picture is a function of (seed, epoch, picture)."""

    pictures: FramedPictures

    def one(self, row: int, epoch: int) -> Tensor:
        return self.pictures.cut(row, generator_of(self.seed, epoch, row))
