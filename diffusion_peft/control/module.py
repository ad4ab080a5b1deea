"""Training a control: the denoising loss under conditions, and a log of whether the branch does anything yet."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from peft_data.batches import generator_of
from torch import Tensor

from diffusion_peft.control.branch import controls_of, set_condition
from diffusion_peft.training.denoise import Denoiser, _inputs


class Controlled(Denoiser):
    """L = ‖target − f(x_t, t, text, condition)‖²; `history` also has the branch's effect.

    `open` is how far gates or zero convolutions are open, `change` = ‖f(with) − f(without)‖ / ‖f(without)‖ on the step's
    pictures at new noise, as root mean squares.

    Args:
        early: t = (1 − u³) T with u uniform, in place of a uniform t (Mou et al.).
        effect_every: optimiser steps between two looks at the effect; 20 looks a run where 0.
    """

    kept: ClassVar[tuple[str, ...]] = (*Denoiser.kept, "looked")

    def __init__(self, *args: Any, early: bool = False, effect_every: int = 0, **more: Any) -> None:
        super().__init__(*args, **more)
        self.early, self.effect_every = early, effect_every or max(1, self.steps // 20)
        self.latest: dict[str, Any] = {}
        self.looked = 0

    def times(self, x: Tensor, chance: torch.Generator) -> Tensor:
        if not self.early:
            return super().times(x, chance)
        u, total = torch.rand(len(x), generator=chance), len(self.process.alphas)  # type: ignore[attr-defined]
        return ((1 - u**3) * total).long().clamp(max=total - 1)

    def training_step(self, batch: dict[str, Any], index: int) -> Tensor:
        self.latest = batch
        return super().training_step(batch, index)

    def predict(self, condition: dict[str, Tensor] | None = None, **inputs: Tensor) -> Tensor:  # type: ignore[override]
        set_condition(self.unet, condition)
        return super().predict(**inputs)

    def note(self, index: int) -> None:
        known = len(self.history)
        super().note(index)
        step = self.trainer.global_step
        if len(self.history) > known and (
            step >= self.looked + self.effect_every or step == self.steps or not self.looked
        ):
            self.looked = step
            self.history[-1] |= self.effect(step)

    @torch.no_grad()
    def effect(self, step: int) -> dict[str, float]:
        inputs: dict[str, Any] = _inputs(self.noised(self.latest, generator_of(self.seed, 2, step)))
        condition = inputs.pop("condition")
        without = self.predict(**inputs).float()
        change = self.predict(condition=condition, **inputs).float() - without
        opened = max(control.effect() for _, control in controls_of(self.unet))
        return {"open": opened, "change": float(change.square().mean().sqrt() / without.square().mean().sqrt())}

    def describe(self) -> str:
        row = next((row for row in reversed(self.history) if "change" in row), None)
        return super().describe() + (f", the branch changes the output by {row['change']:.1%}" if row else "")
