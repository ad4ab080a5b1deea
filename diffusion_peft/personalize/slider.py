"""Concept sliders: an adapter whose scale, of either sign, moves a picture along one attribute.

Gandikota et al., "Concept Sliders: LoRA Adaptors for Precise Control in Diffusion Models", ECCV 2024.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from diffusion_peft.drawing.scaling import set_scales
from diffusion_peft.training.denoise import Denoiser
from diffusion_peft.training.noise import denoising_loss

SIGNS = (1.0, -1.0)


def ddim_step(x: Tensor, said: Tensor, alpha: Tensor, alpha_next: Tensor, prediction_type: str) -> Tensor:
    """x at the next, smaller noise: x' = √ᾱ' x₀ + √(1 − ᾱ') ε, with x₀ and ε as the model says."""
    if prediction_type == "epsilon":
        noise = said
        clean = (x - (1 - alpha).sqrt() * noise) / alpha.sqrt()
    else:
        clean = alpha.sqrt() * x - (1 - alpha).sqrt() * said
        noise = alpha.sqrt() * said + (1 - alpha).sqrt() * x
    return alpha_next.sqrt() * clean + (1 - alpha_next).sqrt() * noise


class Slider(Denoiser):
    """Each step trains the adapter at scales 1 and −1, whose losses are averaged.

    From text: L_s = ‖f_s(x_t, target) − [f_0(x_t, target) + s η (f_0(x_t, positive) − f_0(x_t, negative))]‖², with one x_t
    for both signs, half drawn by the model at one of them. From pairs of pictures: L_s = ‖f_s(x_t) − noise‖² with x the
    high picture of the pair at s = 1 and the low one at s = −1, under the same noise and time. f_s is the model with its
    adapter at scale s.

    Args:
        strength, guidance, drawing_steps: η, and how x_t is drawn.
    """

    def __init__(self, *args: Any, strength: float = 4.0, guidance: float = 3.0, drawing_steps: int = 50, **more: Any):
        super().__init__(*args, **more)
        self.strength, self.guidance, self.drawing_steps = strength, guidance, drawing_steps
        self.current = 1.0
        if getattr(self.unet, "is_gradient_checkpointing", False):
            self.unet.enable_gradient_checkpointing(self.checkpoint)  # type: ignore[operator]

    def loss(self, batch: dict[str, Any], chance: torch.Generator) -> Tensor:
        losses = []
        if "high" in batch:
            state = chance.get_state()
            for sign, which in zip(SIGNS, ("high", "low"), strict=True):
                chance.set_state(state)
                self.scale(sign)
                losses.append(super().loss(batch[which], chance))
            return torch.stack(losses).mean()
        drawn_at = SIGNS[int(torch.randint(2, (), generator=chance))]
        x, time = self.half_drawn(batch, drawn_at, chance)
        with torch.no_grad():
            self.scale(0.0)
            neutral, positive, negative = (self.say(x, time, batch, of) for of in ("target", "positive", "negative"))
        for sign in SIGNS:
            self.scale(sign)
            wanted = neutral + sign * self.strength * (positive - negative)
            losses.append(denoising_loss(self.say(x, time, batch, "target"), wanted))
        return torch.stack(losses).mean()

    def scale(self, value: float) -> None:
        self.current = value
        set_scales([self.unet], value)

    def checkpoint(self, module: Any, *args: Any) -> Any:
        """Activation checkpointing whose second pass is at the first one's scale, whatever came between."""
        first = self.current

        def again(*inner: Any) -> Any:
            if self.current != first:
                self.scale(first)
            return module(*inner)

        return checkpoint(again, *args, use_reentrant=False)

    def on_after_backward(self) -> None:
        self.scale(1.0)

    def say(self, x: Tensor, time: int, batch: dict[str, Any], of: str) -> Tensor:
        times = torch.full((len(x),), time, device=x.device)
        return self.predict(x=x, time=times, sizes=batch["sizes"], **batch[of])

    @torch.no_grad()
    def half_drawn(self, batch: dict[str, Any], sign: float, chance: torch.Generator) -> tuple[Tensor, int]:
        """x_t and t, drawn from noise at scale `sign` down to a random time."""
        self.scale(sign)
        shape, device = batch["shape"][0].shape, batch["shape"].device
        x = torch.randn(len(batch["shape"]), *shape, generator=chance).to(device)
        alphas: Tensor = self.process.alphas.to(device)  # type: ignore[attr-defined]
        stride = len(alphas) // self.drawing_steps
        times = [len(alphas) - 1 - stride * n for n in range(self.drawing_steps)]
        stop = int(torch.randint(1, self.drawing_steps, (), generator=chance))
        for now, after in zip(times[:stop], times[1 : stop + 1], strict=True):
            said = self.say(x, now, batch, "target")
            if self.guidance != 1:
                empty = self.say(x, now, batch, "empty")
                said = empty + self.guidance * (said - empty)
            x = ddim_step(x, said.to(x.dtype), alphas[now], alphas[after], self.process.prediction_type)
        return x, times[stop]
