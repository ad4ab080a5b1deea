"""How far a training is, for its user: a bar, or lines, and how long it will take."""

from __future__ import annotations

import math
import sys
import time
from typing import Any

from peft_core.jobs.runs.process import duration
from peft_core.jobs.runs.saying import EVERY, block
from peft_core.jobs.runs.training import Callback, Trainer, planned_steps


class Progress(Callback):
    """One bar over all steps on a terminal; elsewhere ten lines, and one every ten seconds at least. After the first steps it
    says how long training will take. The module's `describe()` ends the lines."""

    def __init__(self) -> None:
        self.bar: Any = None
        self.task: Any = None
        self.began, self.first, self.said = 0.0, 0, 0.0
        self.ready = self.expected = False

    def on_train_start(self, trainer: Trainer, module: Any) -> None:
        self.began = self.said = time.monotonic()
        self.first, self.ready, self.expected = trainer.global_step, False, False
        if not trainer.is_global_zero or not sys.stderr.isatty():
            return
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

        words = [
            TextColumn("step {task.completed}/{task.total}" if module.by_steps else "epoch {task.fields[epoch]}"),
            TextColumn("{task.fields[note]}"),
        ]
        self.bar = Progress(words[0], BarColumn(), TimeRemainingColumn(), words[1], console=Console(stderr=True))
        total = planned_steps(trainer, int(trainer.num_training_batches))
        self.task = self.bar.add_task("", total=total, epoch=self.epoch(trainer), note="")
        self.bar.start()

    def on_train_batch_end(self, trainer: Trainer, module: Any, out: Any, batch: Any, index: int) -> None:
        if not trainer.is_global_zero:
            return
        self.expect(trainer)
        epoch = self.epoch(trainer)
        if self.bar is not None:
            self.bar.update(self.task, completed=trainer.global_step, epoch=epoch, note=module.describe())
        elif time.monotonic() - self.said >= EVERY and index + 1 != trainer.num_training_batches:
            where = "" if module.by_steps else f"  epoch {epoch}"
            self.say(f"step {trainer.global_step}/{module.steps}{where}  {module.describe()}{self.left(trainer)}")

    def on_train_epoch_end(self, trainer: Trainer, module: Any) -> None:
        epoch, last = trainer.current_epoch + 1, trainer.max_epochs or -1
        due = epoch == last or epoch % max(1, math.ceil(last / 10)) == 0 or time.monotonic() - self.said >= EVERY
        if self.bar is None and trainer.is_global_zero and due:
            where = f"step {trainer.global_step}/{module.steps}" if module.by_steps else f"epoch {self.epoch(trainer)}"
            self.say(f"{where}  {module.describe()}{self.left(trainer)}")

    def epoch(self, trainer: Trainer) -> str:
        """`3/8`; `3` where steps alone end the training."""
        return f"{trainer.current_epoch + 1}" + (f"/{trainer.max_epochs}" if (trainer.max_epochs or -1) > 0 else "")

    def say(self, text: str) -> None:
        self.said = time.monotonic()
        if self.bar is not None:
            self.bar.console.print(text, highlight=False)
        else:
            print(text, file=sys.stderr, flush=True)

    def expect(self, trainer: Trainer) -> None:
        """Says once, after the third step of this start, how long the whole will take; the first step, which makes things ready,
        does not count, and what takes a few seconds is not told."""
        taken = trainer.global_step - self.first
        if taken == 1 and not self.ready:
            self.began, self.first, self.ready = time.monotonic(), trainer.global_step, True
        elif self.ready and not self.expected and taken >= 2:
            self.expected = True
            if self.seconds_left(trainer) >= 5 and self.said < self.began:
                pace = (time.monotonic() - self.began) / taken
                words = f"about {duration(self.seconds_left(trainer))} of training ({pace:.2g} s a step)"
                self.say(block([("expect", words)]))

    def seconds_left(self, trainer: Trainer) -> float:
        """Of training, after the pace so far."""
        steps = planned_steps(trainer, int(trainer.num_training_batches)) - trainer.global_step
        return steps * (time.monotonic() - self.began) / max(1, trainer.global_step - self.first)

    def left(self, trainer: Trainer) -> str:
        """The time that training will still take, in words."""
        seconds = self.seconds_left(trainer)
        return f"  {duration(seconds)} left" if seconds >= 1 else ""

    def on_train_end(self, trainer: Trainer, module: Any) -> None:
        self.close()

    def on_exception(self, trainer: Trainer, module: Any, exception: BaseException) -> None:
        self.close()

    def close(self) -> None:
        if self.bar is not None:
            self.bar.stop()
            self.bar = None
