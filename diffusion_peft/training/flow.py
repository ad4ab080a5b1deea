"""Flow matching: the straight way from a picture to noise, and how much of it a step is trained at.

Liu et al., "Flow Straight and Fast", ICLR 2023; Esser et al., "Scaling Rectified Flow Transformers for High-Resolution Image
Synthesis", ICML 2024, sections 3.1 and 5.3.2: densities of σ, their weights, and the shift that more tokens need.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal

import torch
from torch import Tensor

from peft_core.errors import PeftError

Density = Literal["uniform", "logit_normal", "mode"]
Weight = Literal["none", "sigma_sqrt", "cosmap", "preconditioned"]
STEPS = 1000


@dataclass(frozen=True)
class Flow:
    """x_σ = (1 − σ) x₀ + σ ε; the model says ε − x₀.

    σ stands on the grid s k / (1 + (s − 1) k) for k = 1 … 1/1000, of which it takes the place ⌊1000 u⌋, as diffusers' training
    scripts do.

    Args:
        density: of u: uniform; logit_normal, 1 / (1 + e^−(mean + std · N)); mode, 1 − r − mode_scale (cos² (π r / 2) − 1 + r).
        mean, std, mode_scale: of these.
        weight: none; sigma_sqrt, 1/σ²; cosmap, 2 / (π (1 − 2σ + 2σ²)); preconditioned, σ², which is the error of the picture
            that the model's word means (the scripts' `precondition_outputs`).
        shift: s, the noise that more tokens need; None: by resolution, s = e^(m + (n − n₀) (m' − m) / (n' − n₀)) of n tokens.
        dynamic: m, m', n₀ and n' (base_shift, max_shift, base_image_seq_len, max_image_seq_len), or s itself linear in n.
        patch: latents a token along each side.
    """

    density: Density = "uniform"
    mean: float = 0.0
    std: float = 1.0
    mode_scale: float = 1.29
    weight_of: Weight = "none"
    shift: float | None = 1.0
    dynamic: tuple[float, float, int, int] = (0.5, 1.15, 256, 4096)
    linear: bool = False
    patch: int = 1
    prediction_type = "flow"

    def times(self, x: Tensor, chance: torch.Generator) -> Tensor:
        return self._at(self.places(len(x), chance), x)

    def spread(self, x: Tensor, count: int) -> Tensor:
        return self._at((torch.arange(count) + 0.5) / count, x)

    def _at(self, places: Tensor, x: Tensor) -> Tensor:
        place = (places * STEPS).long().clamp(0, STEPS - 1)
        return self.grid(x.shape[-2] * x.shape[-1] // self.patch**2)[place]

    def places(self, count: int, chance: torch.Generator) -> Tensor:
        """u: 0 is noise, 1 the picture."""
        if self.density == "logit_normal":
            return (torch.randn(count, generator=chance) * self.std + self.mean).sigmoid()
        u = torch.rand(count, generator=chance)
        return u if self.density == "uniform" else 1 - u - self.mode_scale * ((math.pi * u / 2).cos() ** 2 - 1 + u)

    def grid(self, tokens: int) -> Tensor:
        """σ, falling from 1."""
        plain = torch.arange(STEPS, 0, -1, dtype=torch.float32) / STEPS
        s = self.shift
        if s is None:
            low, high, fewest, most = self.dynamic
            m = low + (tokens - fewest) * (high - low) / (most - fewest)
            s = m if self.linear else math.exp(m)
        return s * plain / (1 + (s - 1) * plain)

    def mixed(self, x: Tensor, noise: Tensor, time: Tensor) -> Tensor:
        sigma = time.view(-1, 1, 1, 1)
        return (1 - sigma) * x + sigma * noise

    def target(self, x: Tensor, noise: Tensor, time: Tensor) -> Tensor:
        return noise - x

    def weight(self, time: Tensor) -> Tensor | None:
        if self.weight_of == "none":
            return None
        if self.weight_of == "sigma_sqrt":
            return time**-2.0
        if self.weight_of == "cosmap":
            return 2 / (math.pi * (1 - 2 * time + 2 * time**2))
        return time**2


def flow_of(config: Mapping[str, Any], patch: int, options: Mapping[str, Any]) -> Flow:
    """The flow of a base's scheduler under `--flow`'s options.

    Args:
        config: of the scheduler; what it says of resolution is used where the shift is to be `resolution`, as drawing does it;
            by default the grid is the one that the scheduler has for itself, as in diffusers' training scripts.
    """
    chosen = {key: value for key, value in options.items() if key in {each.name for each in fields(Flow)}}
    shift = chosen.pop("shift", "base")
    if "weight" in options:
        chosen["weight_of"] = options["weight"]
    if shift == "base":
        shift = 1.0 if config.get("use_dynamic_shifting") else config.get("shift", 1.0)
    elif shift == "resolution":
        keys = ("base_shift", "max_shift", "base_image_seq_len", "max_image_seq_len")
        stock = dict(zip(keys, Flow.dynamic, strict=True))
        chosen["dynamic"] = tuple(value if config.get(key) is None else config[key] for key, value in stock.items())
        chosen["linear"] = config.get("time_shift_type") == "linear"
        shift = None
    else:
        try:
            shift = float(shift)
        except ValueError:
            shift = 0.0
        if not 0 < shift < math.inf:
            raise PeftError(f"--flow.shift {options['shift']} must be base, resolution or a number above 0.")
    return Flow(**chosen, shift=shift, patch=patch)
