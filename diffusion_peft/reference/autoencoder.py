"""First stage: the autoencoder, on crops and then on whole pictures.

Loss: mean |x - y| + 2 mean (x - y)² + mean |∇x - ∇y| / 2 + 5e-4 KL, with pictures in [-1, 1] and KL per latent value.
"""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any, cast

import torch
from diffusers import AutoencoderKL
from peft_data.world.captioned import captioned_block
from peft_data.world.draw import Draw
from peft_data.world.natural import cluttered
from peft_data.world.render import render
from peft_data.world.shapes import PRETRAINING_SHAPES
from torch import nn

from .progress import Meter, Progress

USES = 40
"""Steps that draw from one block of pictures."""


def signed(pictures: torch.Tensor) -> torch.Tensor:
    """uint8 in 0 … 255 to float in [-1, 1]."""
    return pictures.float() / 127.5 - 1


def block_of(number: int, seed: int, n: int) -> torch.Tensor:
    """Pictures to compress: two blocks in three are captioned ones, the third shows more shapes, textures, colours."""
    if number % 3 != 2:
        return captioned_block(number, "autoencoder", seed, n=n)[0]
    draw = Draw("pretrain", "autoencoder", seed, number)
    return render(cluttered(draw, draw.labels(n, len(PRETRAINING_SHAPES))), 64).uint8


def batch(pictures: torch.Tensor, step: int, seed: int, size: int, count: int) -> torch.Tensor:
    """Random crops of `size` pixels; in half of them channels are swapped and perhaps inverted."""
    chance = torch.Generator().manual_seed(seed + 1_000_003 * (step + 1))
    chosen = torch.randint(len(pictures), (count,), generator=chance)
    corner = torch.randint(0, (64 - size) // 4 + 1, (count, 2), generator=chance).mul(4).tolist()
    crops = torch.stack([pictures[i, :, y : y + size, x : x + size] for i, (y, x) in zip(chosen, corner, strict=True)])
    swap = torch.rand(count, 3, generator=chance).argsort(1)
    invert = torch.where(torch.rand(count, 1, 1, 1, generator=chance) < 0.5, -1.0, 1.0)
    plain = torch.rand(count, 1, 1, 1, generator=chance) < 0.5
    images = signed(crops)
    return torch.where(plain, images, images[torch.arange(count)[:, None], swap] * invert)


def decoded(vae: AutoencoderKL, latents: torch.Tensor) -> torch.Tensor:
    return vae.decode(cast("Any", latents))[0]


def loss_of(vae: AutoencoderKL, images: torch.Tensor) -> torch.Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        posterior = vae.encode(images)[0]
        seen = decoded(vae, posterior.mean + posterior.std * torch.randn_like(posterior.mean))
    miss = seen.float() - images
    slope = (miss.diff(dim=2).abs().mean() + miss.diff(dim=3).abs().mean()) / 2
    mean, log = posterior.mean.float(), posterior.logvar.float()
    kl = 0.5 * (mean.square() + log.exp() - 1 - log).mean()
    return miss.abs().mean() + 2 * miss.square().mean() + slope + 5e-4 * kl


@torch.no_grad()
def standardise(vae: AutoencoderKL, pictures: torch.Tensor) -> None:
    """Rewrites the 1 × 1 convolutions around the latents, so that each channel has mean 0 and deviation 1 there."""
    latents = vae.encode(signed(pictures))[0].mean
    mean, deviation = latents.mean((0, 2, 3)), latents.std((0, 2, 3))
    channels = len(mean)
    first, second = vae.quant_conv, vae.post_quant_conv
    second.bias += (second.weight[:, :, 0, 0] * mean).sum(1)  # type: ignore
    second.weight *= deviation[:, None, None]  # type: ignore
    first.weight[:channels] /= deviation[:, None, None, None]  # type: ignore
    first.bias[:channels] = (first.bias[:channels] - mean) / deviation  # type: ignore
    first.bias[channels:] -= 2 * deviation.log()  # type: ignore


@torch.no_grad()
def signal_to_noise(vae: AutoencoderKL, seed: int) -> float:
    """PSNR in dB of 200 held-out captioned pictures after encoding and decoding."""
    pictures = captioned_block(0, "held out", seed, n=200)[0]
    errors = [
        (decoded(vae, vae.encode(images)[0].mean).clamp(-1, 1) - images).square().mean((1, 2, 3)) / 4
        for images in signed(pictures).split(100)
    ]
    return -10 * math.log10(torch.cat(errors).mean().item())


def train(vae: AutoencoderKL, path: Path, seed: int, steps: int, lr: float, every: int, n: int) -> None:
    """Trains the autoencoder in place, from the state at `path` where there is one; ends with its averages, frozen.

    Args:
        steps: four in five see 32 crops of 32 pixels, the last fifth 8 whole pictures.
        every: steps between two writings of the state.
        n: pictures a block.
    """
    progress = Progress({"vae": vae}, lr, steps, path, decay=0.998)
    meter, began, first = Meter(), time.monotonic(), progress.done
    number, pictures = -1, torch.empty(0)
    while progress.done < steps:
        step = progress.done
        if step // USES != number:
            number = step // USES
            pictures = block_of(number, seed, n)
        torch.manual_seed(seed + step)
        size, count = (32, 32) if step < 0.8 * steps else (64, 8)
        loss = loss_of(vae, batch(pictures, step, seed, size, count))
        meter.add(loss.detach())
        progress.step(loss)
        if progress.done % 100 == 0:
            speed = (progress.done - first) / (time.monotonic() - began)
            print(f"autoencoder {progress.done} of {steps} · loss {meter.take():.4f} · {speed:.2f} steps/s", flush=True)
        if progress.done % every == 0 or progress.done == steps:
            progress.write()
    settle(vae, progress)
    standardise(vae, captioned_block(0, "autoencoder", seed, n=n)[0])


def settle(model: nn.Module, progress: Progress) -> None:
    """The averages become the weights; nothing is trained any more."""
    for name, value in progress.average.items():
        progress.parameters[name].data.copy_(value)
    model.eval().requires_grad_(False)
