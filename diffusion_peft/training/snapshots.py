"""Adapters kept on the way: `--keep_every 500` writes snapshots/step500, step1000, …, each a run folder of its own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from peft_core.jobs.runs.training import Callback

SNAPSHOTS = "snapshots"


class Snapshots(Callback):
    """Calls `keep(step)` on the first process after every `every` optimiser steps; stands behind what notes the loss."""

    def __init__(self, every: int, keep: Callable[[int], None]) -> None:
        self.every, self.keep = every, keep
        self.last = 0

    def on_train_batch_end(self, trainer: Any, module: Any, out: Any, batch: Any, index: int) -> None:
        step = trainer.global_step
        if self.every and trainer.is_global_zero and step != self.last and step % self.every == 0:
            self.last = step  # the same step is seen again while gradients accumulate
            self.keep(step)
