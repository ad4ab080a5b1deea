"""What both stages of the training share: an optimiser whose whole state is one safetensors file, and the EMA."""

from __future__ import annotations

import math
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import nn

from peft_core.jobs.runs.training_state import keep, put_back, values_and_moments


class Progress:
    """AdamW with warm-up, a constant rate and a linear decay over the last fifth; exponential averages of the weights.

    Args:
        models: by name; all their parameters are trained.
        lr: the highest learning rate.
        steps: where the training ends. A run can be given more steps until the decay begins.
        path: the state's file; the training goes on from it where it is there.
        decay: of the averages; it grows from 0 as (1 + step) / (10 + step).
    """

    def __init__(self, models: dict[str, nn.Module], lr: float, steps: int, path: Path, decay: float = 0.999):
        named = [(f"{part}.{name}", p) for part, model in models.items() for name, p in model.named_parameters()]
        self.parameters = dict(named)
        groups = [
            {"params": [p for p in self.parameters.values() if (p.ndim > 1) == wide], "weight_decay": 0.01 * wide}
            for wide in (True, False)
        ]
        self.optimiser = torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.99), eps=1e-8, fused=True)
        self.lr, self.steps, self.path, self.decay, self.done = lr, steps, path, decay, 0
        self.average = {name: p.detach().clone() for name, p in self.parameters.items()}
        if path.is_file():
            state = load_file(path)
            self.done = int(state["step"])
            put_back(state, self.done, self.optimiser, self.parameters)
            for name, average in self.average.items():
                average.copy_(state[f"average.{name}"])

    def step(self, loss: torch.Tensor) -> None:
        """One update from a loss."""
        loss.backward()
        share = min((self.done + 1) / 300, 1.0, 5 * (self.steps - self.done) / self.steps)
        for group in self.optimiser.param_groups:
            group["lr"] = self.lr * share
        nn.utils.clip_grad_norm_(self.parameters.values(), 1.0)
        self.optimiser.step()
        self.optimiser.zero_grad()
        self.done += 1
        weight = 1 - min(self.decay, (1 + self.done) / (10 + self.done))
        with torch.no_grad():
            torch._foreach_lerp_(list(self.average.values()), list(self.parameters.values()), weight)

    def write(self) -> None:
        """Writes the state."""
        averages = {f"average.{name}": average for name, average in self.average.items()}
        state = values_and_moments(self.optimiser, self.parameters)
        keep({"step": torch.tensor(self.done)} | averages | state, self.path)


class Meter:
    """Mean of the losses since the last report."""

    def __init__(self) -> None:
        self.total, self.count = 0.0, 0

    def add(self, loss: torch.Tensor) -> None:
        self.total, self.count = self.total + loss.item(), self.count + 1

    def take(self) -> float:
        mean = self.total / self.count if self.count else math.nan
        self.total, self.count = 0.0, 0
        return mean
