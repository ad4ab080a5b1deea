"""A whole training step, picture and text included: ours from the caches, and diffusers' own order of work with PEFT, which
encodes picture and text in every step. Time interleaved in one process, peak memory each in a fresh one.

python -m benchmarks.diffusion_whole_step               # LoRA on attention, SD 1.5 shapes at a quarter of the width
"""

from __future__ import annotations

import argparse
import gc
import multiprocessing
from typing import Any

import torch
from diffusers import AutoencoderKL
from peft_data.batches import generator_of
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel

from benchmarks.diffusion_models import by_peft, ours, small_unet
from benchmarks.measuring import interleaved, machine, options, ratios, write_ratios
from diffusion_peft.base.families import of_kind
from diffusion_peft.training.denoise import Denoiser
from diffusion_peft.training.noise import Discrete
from peft_core.jobs.runs.machine import peak_memory

SIDES = {"ours": ours("attention"), "diffusers": by_peft("attention")}
MEASURED = 3
"""Steps after which the peak is read."""


class Side:
    """One loop's models and its next step; `losses` so far."""

    def __init__(self, name: str, batch: int, latent: int, width: int, device: torch.device) -> None:
        torch.manual_seed(0)
        levels: dict[str, Any] = {  # typed as of one level
            "block_out_channels": (32, 64, 128, 128),
            "down_block_types": ("DownEncoderBlock2D",) * 4,
            "up_block_types": ("UpDecoderBlock2D",) * 4,
        }
        self.vae: Any = AutoencoderKL(**levels, layers_per_block=2, latent_channels=4, norm_num_groups=16)
        self.vae.requires_grad_(False)
        self.text: Any = CLIPTextModel(
            CLIPTextConfig(hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12)
        )
        self.text.requires_grad_(False).eval()
        self.vae.to(device)
        self.text.to(device)
        self.pictures = (torch.rand(batch, 3, 8 * latent, 8 * latent) * 2 - 1).to(device)
        self.ids = torch.randint(1000, 40000, (batch, 77)).to(device)
        self.losses: list[float] = []
        self.cached = None
        if name == "ours":
            self.cached = self.encoded(one_by_one=True)
            del self.vae, self.text
            gc.collect()
        unet = SIDES[name](small_unet(width)).train()
        normal = (torch.tensor(0.0), torch.tensor(0.18215))
        process = Discrete(torch.linspace(0.999, 0.005, 1000))
        self.denoiser = Denoiser(unet, {}, process, 1000, family=of_kind("sd1"), normal=normal).to(device)
        self.optimizer = torch.optim.AdamW([p for p in unet.parameters() if p.requires_grad], 1e-4)

    @torch.no_grad()
    def encoded(self, one_by_one: bool = False) -> dict[str, Tensor]:
        parts = [self.vae.encode(some).latent_dist for some in self.pictures.split(1 if one_by_one else 64)]
        mean, logvar = (torch.cat([getattr(part, key) for part in parts]) for key in ("mean", "logvar"))
        hidden = self.text(self.ids).last_hidden_state
        return {"mean": mean, "logvar": logvar, "hidden": hidden, "sizes": mean.new_zeros(len(mean), 6)}

    def step(self) -> None:
        batch = self.cached or self.encoded()
        loss = self.denoiser.loss(batch, generator_of(len(self.losses)))
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.losses.append(loss.item())


def peak(name: str, threads: int, *shape: Any) -> int:
    """Bytes that the process held at most, the libraries' own included; on a GPU those of its tensors."""
    torch.set_num_threads(threads)
    side = Side(name, *shape)
    for _ in range(MEASURED):
        side.step()
    return peak_memory()["bytes"]


def whole(args: argparse.Namespace) -> None:
    """Prints how many times longer diffusers' loop takes, how the losses differ, and both peaks."""
    shape = (args.batch, args.latent, args.width, args.device)
    sides = {name: Side(name, *shape) for name in SIDES}
    found = ratios(interleaved({name: side.step for name, side in sides.items()}, args.rounds, args.device), "ours")
    one, other = (side.losses for side in sides.values())
    apart = max(abs(a - b) / a for a, b in zip(one, other, strict=False))
    part = f"whole step, batch {args.batch}, {8 * args.latent} px"
    print(f"{part}, {args.rounds} interleaved rounds, {machine(args.device)}")
    print(f"diffusers' order of work takes {found['diffusers']:.2f} × ours; over {min(len(one), len(other))} steps the losses "
          f"differ by {apart:.1e} of themselves at most")  # fmt: skip
    sides.clear()
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        peaks = {name: pool.apply(peak, (name, torch.get_num_threads(), *shape)) for name in SIDES}
    words = ", ".join(f"{name} {size / 2**20:,.0f} MiB" for name, size in peaks.items())
    print(f"peak memory of the process: {words}: {peaks['diffusers'] / peaks['ours']:.2f} ×")
    write_ratios(args.ratios, part, "diffusers to ours", time=found["diffusers"],
                 peak=peaks["diffusers"] / peaks["ours"])  # fmt: skip


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--latent", type=int, default=32)
    parser.add_argument("--width", type=int, default=80)
    parser.add_argument("--rounds", type=int, default=15)
    whole(parser.parse_args())


if __name__ == "__main__":
    main()
