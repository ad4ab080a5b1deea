"""`--val 0.1`: the loss of pictures that are not trained on, always at the same times and with the same noise."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from peft_data.batches import generator_of
from torch import Tensor

from diffusion_peft.data.examples import Examples
from peft_core.jobs.runs.training import EarlyStopping, Trainer, stepped
from peft_core.passes.evaluating import evaluating

TIMES = 8
"""At which each picture is noised, spread evenly over those of training."""
METRIC = "val_loss"


class Validation(EarlyStopping):
    """Adds `val_loss` to the module's history before training, every `every` optimiser steps and at the end, and stops training
    once it was `patience` times no lower than before (never where that is 0).

    The noise of a picture is a function of (seed, its number), so that the same weights have the same loss. `keep(step)` is
    called on the first process whenever it is the lowest so far. It stands before the callback that saves checkpoints.
    """

    def __init__(self, examples: Examples | None, every: int, patience: int, keep: Callable[[int], None]) -> None:
        super().__init__(METRIC, patience=patience or 2**31, check_on_train_epoch_end=False)
        self.examples, self.every, self.keep = examples, every, keep

    def on_train_start(self, trainer: Trainer, module: Any) -> None:
        if self.examples is not None and not any(METRIC in row for row in module.history):
            self.look(trainer, module)
        trainer.should_stop |= self.wait_count >= self.patience  # killed behind its end, it goes no further

    def on_train_batch_end(self, trainer: Trainer, module: Any, out: Any, batch: Any, index: int) -> None:
        step = trainer.global_step
        if self.examples is not None and stepped(trainer, index) and (step % self.every == 0 or step == module.steps):
            self.look(trainer, module)

    def look(self, trainer: Trainer, module: Any) -> None:
        assert self.examples is not None
        with module.averaged(), evaluating(module), trainer.precision_plugin.forward_context():
            loss = trainer.strategy.broadcast(held_out_loss(module, self.examples))
        before = [row[METRIC] for row in module.history if METRIC in row]
        row = {"step": trainer.global_step, "epoch": trainer.current_epoch, METRIC: loss}
        module.history.append(row)
        if trainer.is_global_zero and before and loss < min(before):
            self.keep(trainer.global_step)
        trainer.callback_metrics[METRIC] = torch.tensor(loss)
        self.on_validation_end(trainer, module)


@torch.no_grad()
def held_out_loss(module: Any, examples: Examples) -> float:
    """The mean over pictures and times of the training loss, one picture at a time."""
    losses: list[Tensor] = []
    for number in range(len(examples)):
        chance = generator_of(module.seed, 3, number)
        batch = {key: value.to(module.device) for key, value in examples.batch([number], chance).items()}
        losses += [module.loss(batch, chance, time) for time in module.process.spread(batch["mean"], TIMES).split(1)]
    return float(torch.stack(losses).double().mean())


def about(history: list[dict[str, float]], pictures: int, steps: int) -> tuple[dict[str, Any], str | None]:
    """What a run's validation came to, and a remark where an earlier adapter was better."""
    rows = [row for row in history if METRIC in row]
    best, last = min(rows, key=lambda row: row[METRIC]), rows[-1]
    found = {
        "pictures": pictures, "before": rows[0][METRIC], "best": best[METRIC], "best_step": best["step"], "last": last[METRIC],
        "stopped_early": last["step"] < steps,
    }  # fmt: skip
    if best is last:
        return found, None
    what = "before training: it learns nothing that the held-out pictures share"
    if best is not rows[0]:
        what = f"after {best['step']:,.0f} steps, and that adapter is kept in snapshots/best"
    return (
        found,
        f"the loss of held-out pictures was lowest, {best[METRIC]:.4f}, {what} ({last[METRIC]:.4f} at the end)",
    )
