"""The optimiser of a run and its schedule, and the mean of the weights that some keep: it is looked at and saved, and never
trained on."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from peft_core.jobs.runs.optimizers import WITHOUT_GRADIENTS, Optimizer, check_without_gradients, make_optimizer
from peft_core.jobs.runs.training import LightningModule

SCHEDULE_FREE = ("schedule_free",)
"""Those that keep such a mean in place of a falling rate."""


def rate_at(step: int, warm: int, steps: int, final: float = 0.0) -> float:
    """Of the highest rate: it rises over `warm` steps, then falls to `final` along a cosine."""
    if step < warm:
        return (step + 1) / warm
    done = min(1.0, (step - warm) / max(1, steps - warm))
    return final + (1 - final) * (1 + math.cos(math.pi * done)) / 2


class Optimising(LightningModule):
    """What `Learning` says of its settings is done here."""

    optimizer: Optimizer
    optimizer_settings: dict[str, Any]
    steps: int
    lr: float
    warmup: float
    final_lr: float
    seed: int
    averaging: Any = None
    """The optimiser, where it keeps a mean of the weights."""
    looking: ExitStack

    def adapted(self) -> dict[str, nn.Module]:
        """Attribute path -> adapted model, of all models that train."""
        raise NotImplementedError(f"{type(self).__name__} must define adapted()")

    def optimised(self, groups: list[dict[str, Any]]) -> dict[str, Any]:
        """The optimiser of these groups, each with a rate of its own, and the schedule over them all."""
        warm = round(self.warmup * self.steps)
        optimizer = self._optimizer(groups, warm)

        def factor(step: int) -> float:
            if self.averaging is not None:
                return 1.0
            return rate_at(step, warm, self.steps, self.final_lr)

        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def _optimizer(self, groups: list[dict[str, Any]], warm: int) -> torch.optim.Optimizer:
        models, own = list(self.adapted().values()), self.optimizer_settings
        if self.without_gradients:
            check_without_gradients(self.optimizer, self.trainer, models)
            own = {"seed": self.seed} | own
        precision = str(self.trainer.precision)
        made = make_optimizer(self.optimizer, groups, self.lr, self.device, precision, models, own, warm)
        if self.optimizer in SCHEDULE_FREE:
            self.averaging = made
            self.averaging.train()
        return made

    @property
    def without_gradients(self) -> bool:
        """Steps are two losses of a batch, of models in eval mode, without gradients."""
        return self.optimizer in WITHOUT_GRADIENTS

    def backward(self, loss: Tensor, *settings: Any, **more: Any) -> None:
        if not self.without_gradients:
            super().backward(loss, *settings, **more)

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Within the block the models hold the mean of their weights, where one is kept, and behind it what they held, to
        the last bit."""
        groups = [] if self.averaging is None else [g for g in self.averaging.param_groups if g["train_mode"]]
        kept = [(p, p.detach().clone()) for group in groups for p in group["params"]]
        if groups:
            self.settle()
        try:
            yield
        finally:
            with torch.no_grad():
                for parameter, value in kept:
                    parameter.copy_(value)
            for group in groups:
                group["train_mode"] = True

    def settle(self) -> None:
        """The models hold that mean for good, where there is one."""
        if self.averaging is not None:
            self.averaging.eval()

    def on_validation_start(self) -> None:
        self.looking = ExitStack()
        self.looking.enter_context(self.averaged())

    def on_validation_end(self) -> None:
        self.looking.close()
