"""`--lr find`: a learning rate from a short sweep of rates, on a copy of the model: training starts as if nobody had looked.

Smith's range test (arXiv 1506.01186, as fastai runs it): over some 100 steps of training batches the rate rises exponentially;
the loss, smoothed, falls and then explodes. A tenth of the rate at which it is lowest is taken.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from peft_core.errors import PeftError
from peft_core.jobs.reports import page, plots
from peft_core.jobs.runs.folder import RATES, RATES_PICTURE, RunFolder
from peft_core.jobs.runs.learning import Learning
from peft_core.jobs.runs.process import tell
from peft_core.jobs.runs.saying import waiting
from peft_core.jobs.runs.training import Callback, make_trainer, quiet

STEPS, LOW, HIGH = 100, 1e-6, 1.0
KEPT = 0.9
"""Of the smoothed loss, at each step."""
BELOW = 10.0
"""How far the rate taken lies below that of the lowest loss."""
FLAGS = ("accelerator", "precision", "gradient_clip_val", "gradient_clip_algorithm")
"""Those of Lightning's flags that a step depends on."""


@dataclass(frozen=True)
class Tested:
    """Rates that were tried, one a step, with the smoothed loss at each, and the one that was taken."""

    rates: Sequence[float]
    losses: Sequence[float]
    rate: float

    def write(self, folder: RunFolder) -> None:
        """rates.csv and rates.png; the first process alone."""
        rows = [{"lr": rate, "loss": loss} for rate, loss in zip(self.rates, self.losses, strict=True)]
        folder.write({RATES: page.csv_bytes(rows), RATES_PICTURE: picture(self)})


def find_rate(module: Learning, batches: Any, flags: Mapping[str, Any]) -> Tested:
    """The rates that a copy of `module` was trained with, and the one to train it with.

    Args:
        batches: of the training data; the copy goes through them again and again.
        flags: the run's flags for Lightning.

    Raises:
        PeftError: no rate lowers the loss, or the optimiser is one that this test says nothing of.
    """
    if module.without_gradients:
        raise PeftError(
            f"--lr find follows gradients, which --optimizer {module.optimizer} has none of: give --lr a number."
        )
    if str(flags.get("devices", 1)) not in ("1", "[0]") or flags.get("num_nodes", 1) != 1:
        raise PeftError("--lr find runs on one device: find the rate there first, and give its number to the others.")
    high = HIGH * (10 if module.optimizer == "sgd" else 1)
    with waiting(f"trying learning rates from {LOW:g} to {high:g}"), torch.random.fork_rng(devices=[]), quiet():
        ramp = Ramp(STEPS, LOW, high)
        known = {key: flags[key] for key in FLAGS if key in flags}
        trainer = make_trainer(known, [ramp], max_steps=STEPS, max_epochs=-1)
        trainer.fit(copy.deepcopy(module), batches)
    tested = Tested(ramp.rates, ramp.losses, chosen(ramp.rates, ramp.losses))
    tell(
        f"learning rate {tested.rate:g}: a tenth of where the loss was lowest in {len(ramp.rates)} steps of rising rates"
    )
    return tested


def chosen(rates: Sequence[float], losses: Sequence[float]) -> float:
    """A tenth of the rate of the lowest loss, two digits of it; the first losses, means of few batches, are not looked at."""
    first = min(round(1 / (1 - KEPT)), len(losses) // 4)
    lowest = min(range(first, len(losses)), key=losses.__getitem__, default=first)
    if lowest == first:
        raise PeftError("no learning rate lowers the loss within the first steps: give --lr a number.")
    return float(f"{rates[lowest] / BELOW:.2g}")


def picture(tested: Tested) -> bytes:
    """PNG: the smoothed loss against the rate, the chosen one marked."""
    figure, (axis,) = plots.axes(1, 1, figsize=(7, 3.4))
    axis.plot(tested.rates, tested.losses, color=plots.ACCENT, lw=1.5)
    axis.axvline(tested.rate, color=plots.SECOND, lw=1.2, label=f"chosen, {tested.rate:g}")
    axis.set_xscale("log")
    low, first = min(tested.losses), tested.losses[0]
    axis.set_ylim(low - 0.1 * (first - low), first + 0.6 * (first - low))
    axis.set_xlabel("learning rate")
    axis.set_ylabel("training loss, smoothed")
    axis.legend(frameon=False, loc="upper left")
    return plots.png(figure)


class Ramp(Callback):
    """Rates that rise exponentially, step by step, until the loss explodes; a group's share of the rate stays what it is."""

    def __init__(self, steps: int, low: float, high: float) -> None:
        self.steps, self.low, self.high = steps, low, high
        self.rates: list[float] = []
        self.losses: list[float] = []
        self.mean = 0.0

    def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, index: int) -> None:
        rate = self.low * (self.high / self.low) ** (len(self.rates) / max(1, self.steps - 1))
        for optimizer in trainer.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["initial_lr"] / module.lr * rate
        self.rate = rate

    def on_train_batch_end(self, trainer: Any, module: Any, out: Any, batch: Any, index: int) -> None:
        loss = float(out["loss"])
        self.mean = KEPT * self.mean + (1 - KEPT) * loss
        smooth = self.mean / (1 - KEPT ** (len(self.losses) + 1))
        if math.isfinite(smooth):
            self.rates.append(self.rate)
            self.losses.append(smooth)
        if not math.isfinite(smooth) or smooth > 4 * min(self.losses):
            trainer.should_stop = True
