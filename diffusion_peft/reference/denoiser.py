"""Second stage: UNet and text encoder together, on cached latents and captions that vary from step to step.

Loss: min(SNR, 5) / SNR · (ε - ε̂)² (Hang et al. 2023), empty prompts in a tenth of the pictures.
"""

from __future__ import annotations

import random
import time
from pathlib import Path
from typing import Any, cast

import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from diffusers.models.attention_processor import Attention
from peft_data.world.captioned import caption, captioned_block
from safetensors.torch import load_file
from torch.nn import functional as F
from transformers import CLIPTextModel, CLIPTokenizer

from peft_core.jobs.runs.training_state import keep

from .autoencoder import settle, signed
from .progress import Meter, Progress

GROUP = 16
"""Blocks whose pictures are mixed."""
EMPTY = 0.1


class PlainAttention:
    """Attention by matrix products: in bfloat16 on a CPU faster than the fused kernel, whose backward is slow there."""

    def __call__(
        self,
        attn: Attention,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None = None,
        attention_mask: None = None,
        temb: None = None,
    ) -> torch.Tensor:
        context = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        q, k, v = (
            linear(x).unflatten(-1, (attn.heads, -1)).transpose(1, 2)  # type: ignore
            for linear, x in ((attn.to_q, hidden_states), (attn.to_k, context), (attn.to_v, context))
        )
        weights = (q * q.shape[-1] ** -0.5 @ k.transpose(-1, -2)).softmax(-1).to(v.dtype)
        return attn.to_out[0]((weights @ v).transpose(1, 2).flatten(2))  # type: ignore


class Latents:
    """Latents (float16 N 4 16 16) and labels of groups of blocks, encoded when first asked for and kept in `folder`."""

    def __init__(self, vae: AutoencoderKL, folder: Path, seed: int, blocks: int, n: int):
        self.vae, self.folder, self.seed, self.blocks, self.n = vae, folder, seed, blocks, n
        self.number, self.data = -1, {}

    def block(self, number: int) -> dict[str, torch.Tensor]:
        path = self.folder / f"{number}-{self.n}-seed{self.seed}.safetensors"
        if path.is_file():
            return load_file(path)
        pictures, labels = captioned_block(number, "train", self.seed, n=self.n)
        with torch.no_grad():
            latents = [self.vae.encode(images)[0].mean.half() for images in signed(pictures).split(50)]
        data = {"latents": torch.cat(latents).contiguous(), "labels": labels.to(torch.int8)}
        keep(data, path)
        return data

    def batch(self, step: int, count: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The latents and labels of a step: groups follow each other, each shuffled anew whenever its turn comes."""
        group = min(GROUP, self.blocks)
        turn, start = divmod(step * count, group * self.n // count * count)
        number = turn % (self.blocks // group)
        if number != self.number:
            parts = [self.block(number * group + k) for k in range(group)]
            self.data = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
            self.number = number
        order = torch.randperm(group * self.n, generator=torch.Generator().manual_seed(self.seed + turn))
        chosen = order[start : start + count]
        return self.data["latents"][chosen].float(), self.data["labels"][chosen]


def prompts_of(labels: torch.Tensor, step: int, seed: int) -> list[str]:
    """A caption a picture, another one whenever the picture comes up."""
    rng = random.Random(f"{seed}/{step}")
    return ["" if rng.random() < EMPTY else caption(row, rng) for row in labels]


def loss_of(
    unet: UNet2DConditionModel, text_encoder: CLIPTextModel, scheduler: DDIMScheduler, latents: torch.Tensor,
    tokens: torch.Tensor,
) -> torch.Tensor:  # fmt: skip
    time_steps = torch.randint(0, len(scheduler.alphas_cumprod), (len(latents),))
    noise = torch.randn(latents.shape)
    noisy = scheduler.add_noise(latents, noise, cast("Any", time_steps))
    with torch.autocast("cpu", torch.bfloat16):
        guess = unet(noisy, time_steps, text_encoder(tokens)[0]).sample
    kept = scheduler.alphas_cumprod[time_steps]
    ratio = kept / (1 - kept)
    each = F.mse_loss(guess.float(), noise, reduction="none").mean((1, 2, 3))
    return (each * ratio.clamp(max=5) / ratio).mean()


def train(
    unet: UNet2DConditionModel, text_encoder: CLIPTextModel, tokenizer: CLIPTokenizer, scheduler: DDIMScheduler,
    latents: Latents, path: Path, steps: int, lr: float, every: int, count: int,
) -> None:  # fmt: skip
    """Trains UNet and text encoder in place, from the state at `path` where there is one; ends with the averages.

    Args:
        latents: where batches come from.
        every: steps between two writings of the state.
        count: pictures a step.
    """
    progress = Progress({"unet": unet, "text_encoder": text_encoder}, lr, steps, path)
    processors, attention = unet.attn_processors, text_encoder.config._attn_implementation or "eager"
    unet.set_attn_processor(cast("Any", PlainAttention()))
    text_encoder.set_attn_implementation("eager")
    meter, began, first = Meter(), time.monotonic(), progress.done
    while progress.done < steps:
        step = progress.done
        clean, labels = latents.batch(step, count)
        texts = prompts_of(labels, step, latents.seed)
        tokens = tokenizer(texts, padding="max_length", max_length=77, truncation=True, return_tensors="pt").input_ids
        torch.manual_seed(latents.seed + step)
        loss = loss_of(unet, text_encoder, scheduler, clean, tokens)
        meter.add(loss.detach())
        progress.step(loss)
        if progress.done % 100 == 0:
            speed = count * (progress.done - first) / (time.monotonic() - began)
            print(f"denoiser {progress.done} of {steps} · loss {meter.take():.4f} · {speed:.1f} pictures/s", flush=True)
        if progress.done % every == 0 or progress.done == steps:
            progress.write()
    unet.set_attn_processor(processors)
    text_encoder.set_attn_implementation(attention)
    settle(unet, progress)
    text_encoder.eval().requires_grad_(False)
