"""Losses by hand on small tensors."""

from types import SimpleNamespace

import pytest
import torch
from peft_data.batches import generator_of
from torch import nn

from diffusion_peft.base.families import of_kind
from diffusion_peft.training.denoise import Denoiser
from diffusion_peft.training.noise import Discrete, add_noise, alphas_of, offset_noise, snr_weight, target_of


class Doubles(nn.Module):
    """Says twice what it is given, plus the mean of the text."""

    dtype = torch.float32
    config = SimpleNamespace(addition_embed_type=None)

    def __init__(self) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(2.0))
        self.calls: list[int] = []

    def forward(self, x, time, hidden, added_cond_kwargs=None):
        self.calls.append(len(x))
        return SimpleNamespace(sample=self.factor * x + hidden.mean((1, 2)).view(-1, 1, 1, 1))


ALPHAS = torch.tensor([0.9, 0.5, 0.1])


def group(n: int, seed: int, size: int = 2) -> dict[str, torch.Tensor]:
    chance = torch.Generator().manual_seed(seed)
    mean = torch.randn(n, 4, size, size, generator=chance)
    hidden = torch.randn(n, 3, 5, generator=chance)
    return {"mean": mean, "logvar": mean * 0.1 - 1, "hidden": hidden, "sizes": torch.zeros(n, 6)}


def by_hand(group: dict, chance: torch.Generator, kind: str, gamma: float = 0.0) -> torch.Tensor:
    mean = group["mean"]
    x = 0.5 * (mean + (0.5 * group["logvar"]).exp() * torch.randn(mean.shape, generator=chance))
    noise = torch.randn(mean.shape, generator=chance)
    time = torch.randint(3, (len(mean),), generator=chance)
    total = 0.0
    for row in range(len(mean)):
        a = ALPHAS[time[row]]
        said = 2 * (a.sqrt() * x[row] + (1 - a).sqrt() * noise[row]) + group["hidden"][row].mean()
        target = noise[row] if kind == "epsilon" else a.sqrt() * noise[row] - (1 - a).sqrt() * x[row]
        snr = a / (1 - a)
        weight = 1.0
        if gamma:
            weight = min(snr, gamma) / (snr if kind == "epsilon" else snr + 1)
        total += weight * ((said - target) ** 2).mean()
    return total / len(mean)


OF_SD = {"family": of_kind("sd1"), "normal": (torch.tensor(0.0), torch.tensor(0.5))}


def denoiser(kind: str = "epsilon", gamma: float = 0.0, **settings) -> Denoiser:
    return Denoiser(Doubles(), {}, Discrete(ALPHAS, kind, gamma), 10, **OF_SD, **settings)


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("gamma", [0.0, 2.0])
def test_loss(kind: str, gamma: float) -> None:
    module = denoiser(kind, gamma)
    loss = module.loss(group(3, 0), generator_of(1))
    torch.testing.assert_close(loss, by_hand(group(3, 0), generator_of(1), kind, gamma))


@pytest.mark.parametrize("size", [2, 4])
def test_prior_preservation(size: int) -> None:
    """L = L(pictures) + λ L(prior), in one pass where the sizes agree and in two where they do not."""
    module = denoiser(prior_weight=0.3)
    loss = module.loss(group(2, 0) | {"prior": group(2, 7, size)}, generator_of(1))
    chance = generator_of(1)
    expected = by_hand(group(2, 0), chance, "epsilon") + 0.3 * by_hand(group(2, 7, size), chance, "epsilon")
    torch.testing.assert_close(loss, expected)
    assert module.unet.calls == ([4] if size == 2 else [2, 2])


def test_noise_is_that_of_diffusers() -> None:
    from diffusers import DDPMScheduler

    for extra in ({}, {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction"}):
        scheduler = DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", **extra)
        alphas = alphas_of(dict(scheduler.config))
        x, noise = torch.randn(3, 4, 2, 2), torch.randn(3, 4, 2, 2)
        time = torch.tensor([0, 500, 999])
        torch.testing.assert_close(add_noise(x, noise, alphas[time]), scheduler.add_noise(x, noise, time))
        velocity = scheduler.get_velocity(x, noise, time)
        torch.testing.assert_close(target_of(x, noise, alphas[time], "v_prediction"), velocity)


def test_weights_at_the_ends_of_the_schedule() -> None:
    alpha = torch.tensor([0.0, 0.5, 1 - 1e-6])
    torch.testing.assert_close(snr_weight(alpha, 5.0, "epsilon"), torch.tensor([1.0, 1.0, 5e-6]), rtol=0.1, atol=0)
    torch.testing.assert_close(snr_weight(alpha, 5.0, "v_prediction"), torch.tensor([0.0, 0.5, 5e-6]), rtol=0.1, atol=0)


def test_offset_noise_is_one_number_a_channel() -> None:
    noise = torch.zeros(2, 4, 3, 3)
    offset = offset_noise(noise, 0.1, generator_of(0))
    assert (offset == offset[:, :, :1, :1]).all() and offset[:, :, 0, 0].unique().numel() == 8
    assert offset_noise(noise, 0.0, generator_of(0)) is noise


def test_running_mean() -> None:
    module = denoiser(ema=0.5)
    unet = module.unet
    module.adapted = lambda: {"unet": unet}
    values, mean = [1.0, 3.0, 4.0], None
    for step, value in enumerate(values, 1):
        unet.factor.data.fill_(value)
        module.average(step)
        decay = min(0.5, (1 + step) / (10 + step))
        mean = value if mean is None else decay * mean + (1 - decay) * value
    with module.averaged():
        assert unet.factor.item() == pytest.approx(mean)
    assert unet.factor.item() == 4.0
