"""What a CLIP run says of itself: its first words, val on the way, and the commands that come next."""

from __future__ import annotations

import dataclasses
import math
import shlex
import time
from collections.abc import Callable
from typing import Any

from peft_data import ClassificationData

from clip_peft.open_vocabulary import OpenVocabulary
from peft_core.jobs.hub.references import only_drawn
from peft_core.jobs.runs.folder import RunFolder
from peft_core.jobs.runs.training import Callback
from peft_core.passes.evaluating import evaluating


class Watch(Callback):
    """Looks at val every so many epochs, into the module's history. It stands before the callback that saves checkpoints."""

    every = 0
    look: Callable[[], dict[str, float]]

    def on_train_epoch_end(self, trainer: Any, module: Any) -> None:
        epoch = trainer.current_epoch + 1
        if self.every and trainer.is_global_zero and (epoch % self.every == 0 or epoch == trainer.max_epochs):
            with module.averaged(), evaluating(module):
                module.history.append({"step": trainer.global_step, "epoch": epoch - 1} | self.look())


def seldom(write: Callable[[], object], seconds: float = 1.0) -> Callable[[], None]:
    """Writes when it is called, but not again within so many seconds: epochs on cached features take milliseconds."""
    last = -math.inf

    def now() -> None:
        nonlocal last
        if time.monotonic() - last >= seconds:
            write()
            last = time.monotonic()

    return now


def results_method(whole: OpenVocabulary, options: dict[str, Any]) -> dict[str, Any]:
    return {"name": whole.method.name, **dataclasses.asdict(whole.method)} | options


def backbone_words(about: Any, size: tuple[int, int], data: ClassificationData) -> str:
    return f"{about.name}, {size[0]} × {size[1]} pixels{only_drawn(about.name, data.name)}"


def next_commands(folder: RunFolder, picture: str, classes: str) -> list[str]:
    run, name = shlex.quote(str(folder.path)), str(folder.path).rstrip("/")
    table = f"clip_peft predict --run {run} --out {shlex.quote(f'{name}.csv')} {picture}"
    return [
        f"clip_peft predict --run {run} {picture}",
        f"clip_peft test --run {run} --classes new" if classes == "base" else table,
        f"clip_peft export --run {run} --out {shlex.quote(f'{name}-exported')}",
    ]
