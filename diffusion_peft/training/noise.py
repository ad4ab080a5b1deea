"""The forward process and the losses of diffusion training, as functions of tensors."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor


class Process(Protocol):
    """How pictures are noised, what the model should say of them and how its error weighs; `time` B is what it is told."""

    prediction_type: str

    def times(self, x: Tensor, chance: torch.Generator) -> Tensor:
        """Of these latents B C h w, on the processor."""
        ...

    def spread(self, x: Tensor, count: int) -> Tensor:
        """So many times, spread evenly over those that training draws of latents like these."""
        ...

    def mixed(self, x: Tensor, noise: Tensor, time: Tensor) -> Tensor: ...

    def target(self, x: Tensor, noise: Tensor, time: Tensor) -> Tensor: ...

    def weight(self, time: Tensor) -> Tensor | None:
        """B; all alike where None."""
        ...


class Discrete:
    """x_t = √ᾱ_t x + √(1 − ᾱ_t) ε with t uniform; the model says ε or v.

    Args:
        alphas: ᾱ_t, T values.
        prediction_type: epsilon or v_prediction.
        snr_gamma: γ of min-SNR weighting; none where 0.
    """

    def __init__(self, alphas: Tensor, prediction_type: str = "epsilon", snr_gamma: float = 0.0) -> None:
        self.alphas, self.prediction_type, self.snr_gamma = alphas, prediction_type, snr_gamma

    def alpha(self, time: Tensor) -> Tensor:
        self.alphas = self.alphas.to(time.device)
        return self.alphas[time]

    def times(self, x: Tensor, chance: torch.Generator) -> Tensor:
        return torch.randint(len(self.alphas), (len(x),), generator=chance)

    def spread(self, x: Tensor, count: int) -> Tensor:
        return ((torch.arange(count) + 0.5) / count * len(self.alphas)).long()

    def mixed(self, x: Tensor, noise: Tensor, time: Tensor) -> Tensor:
        return add_noise(x, noise, self.alpha(time))

    def target(self, x: Tensor, noise: Tensor, time: Tensor) -> Tensor:
        return target_of(x, noise, self.alpha(time), self.prediction_type)

    def weight(self, time: Tensor) -> Tensor | None:
        return snr_weight(self.alpha(time), self.snr_gamma, self.prediction_type) if self.snr_gamma else None


def alphas_of(config: dict[str, Any]) -> Tensor:
    """ᾱ_t, T values, of a base's own noise schedule, whichever sampler its scheduler is."""
    from diffusers import DDPMScheduler

    scheduler: Any = DDPMScheduler.from_config(config)
    return scheduler.alphas_cumprod


def add_noise(x: Tensor, noise: Tensor, alpha: Tensor) -> Tensor:
    """x_t = √ᾱ x + √(1 − ᾱ) ε; x and noise B C h w, alpha B."""
    a = alpha.view(-1, 1, 1, 1)
    return a.sqrt() * x + (1 - a).sqrt() * noise


def target_of(x: Tensor, noise: Tensor, alpha: Tensor, prediction_type: str) -> Tensor:
    """What the model should say: ε, or v = √ᾱ ε − √(1 − ᾱ) x."""
    if prediction_type == "epsilon":
        return noise
    a = alpha.view(-1, 1, 1, 1)
    return a.sqrt() * noise - (1 - a).sqrt() * x


def snr_weight(alpha: Tensor, gamma: float, prediction_type: str) -> Tensor:
    """min-SNR-γ: min(SNR, γ) / SNR for ε, min(SNR, γ) / (SNR + 1) for v, with SNR = ᾱ / (1 − ᾱ).

    Hang et al., "Efficient Diffusion Training via Min-SNR Weighting Strategy", ICCV 2023. At SNR = 0, which schedules of
    zero terminal SNR reach, the weight for ε is 1, its limit.
    """
    snr = alpha / (1 - alpha)
    if prediction_type == "epsilon":
        return (gamma / snr).clamp(max=1.0)
    return snr.clamp(max=gamma) / (snr + 1)


def offset_noise(noise: Tensor, offset: float, chance: torch.Generator) -> Tensor:
    """ε + offset · a constant a channel, so that a picture's overall brightness is learned too."""
    if not offset:
        return noise
    return noise + offset * torch.randn(*noise.shape[:2], 1, 1, generator=chance)


def denoising_loss(
    prediction: Tensor, target: Tensor, weight: Tensor | None = None, mask: Tensor | None = None
) -> Tensor:
    """Mean over pictures of weight · mean of the mask · squared error over all of a picture; weight B, mask B 1 h w."""
    error = (prediction.float() - target.float()).square()
    each = (error if mask is None else error * mask).mean((1, 2, 3))
    return (each if weight is None else each * weight).mean()
