"""Time and kept bytes of a diffusion training step, as ratios to the floor: the frozen UNet's forward and the backward
pass of its input's gradient. And a whole step beside diffusers' own loop, which encodes picture and text in every step.

python -m benchmarks.diffusion_step                     # an SD 1.5-shaped UNet of a quarter of the width, batch 2, 32² latents
python -m benchmarks.diffusion_step --rounds 5 --only attention
python -m benchmarks.diffusion_step --whole             # the whole step alone
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import torch
from torch import Tensor, nn

from benchmarks.diffusion_models import TARGETS, by_peft, ours, small_unet
from benchmarks.variants import interleaved, machine, ratios
from diffusion_peft.training.noise import denoising_loss
from peft_core.counting import kept_bytes

MODULES = {
    "attention": ["Attention"],
    "attention + feed-forward": ["Attention", "FeedForward"],
    "LoCon set": ["Attention", "FeedForward", "Transformer2DModel", "ResnetBlock2D", "Downsample2D", "Upsample2D"],
}


def with_input_gradient(unet: nn.Module) -> nn.Module:
    unet.requires_grad_(False)
    unet.conv_in.register_forward_hook(_requires_grad)  # type: ignore[union-attr]
    return unet


def _requires_grad(module: nn.Module, args: tuple, output: Tensor) -> Tensor:
    return output.requires_grad_() if torch.is_grad_enabled() else output


def by_lycoris(name: str) -> Callable[[nn.Module], nn.Module]:
    def make(unet: nn.Module) -> nn.Module:
        from lycoris import LycorisNetwork, create_lycoris

        unet.requires_grad_(False)
        LycorisNetwork.apply_preset({"target_module": MODULES[name], "exclude_name": [".*time_emb_proj.*"]})
        network = create_lycoris(unet, 1.0, linear_dim=4, linear_alpha=4, conv_dim=4, conv_alpha=4, algo="lora")
        network.apply_to()
        unet.__dict__["lycoris"] = list(network.parameters())
        return unet

    return make


def full(unet: nn.Module) -> nn.Module:
    return unet.requires_grad_(True)


class Step:
    """A training step of one UNet on fixed inputs."""

    def __init__(self, make: Callable[[nn.Module], nn.Module], batch: int, latent: int) -> None:
        self.model = make(small_unet()).train()
        chance = torch.Generator().manual_seed(1)
        self.x, self.target = (torch.randn(batch, 4, latent, latent, generator=chance) for _ in range(2))
        self.hidden = torch.randn(batch, 77, 768, generator=chance)
        self.time = torch.full((batch,), 400)
        trained = [p for p in self.model.parameters() if p.requires_grad] + self.model.__dict__.get("lycoris", [])
        self.optimizer = torch.optim.AdamW(trained, lr=1e-5, fused=True) if trained else None

    def loss(self) -> Tensor:
        return denoising_loss(self.model(self.x, self.time, self.hidden).sample, self.target)

    def step(self) -> None:
        self.loss().backward()
        if self.optimizer:
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)


def compare(args: argparse.Namespace) -> None:
    makers = {"full fine-tuning": full}
    for name in TARGETS:
        makers |= {f"ours, {name}": ours(name), f"HF PEFT, {name}": by_peft(name), f"LyCORIS, {name}": by_lycoris(name)}
    floor = Step(with_input_gradient, args.batch, args.latent)
    floor_kept = kept_bytes(floor.loss, floor.model)
    size = sum(p.numel() for p in floor.model.parameters()) / 1e6
    print(
        f"UNet of {size:.1f} M, batch {args.batch}, {args.latent}² latents, {args.rounds} interleaved pairs, {machine()}"
    )
    print(f"| {'variant':34} | time to floor | kept bytes to floor |\n|---|---|---|")
    for name, make in makers.items():
        if args.only and not any(word in name for word in args.only):
            continue
        step = Step(make, args.batch, args.latent)  # two models in memory at a time
        kept = kept_bytes(step.loss, step.model) / floor_kept
        found = ratios(interleaved({"floor": floor.step, name: step.step}, args.rounds), "floor")[name]
        print(f"| {name:34} | {found:.2f} | {kept:.2f} |", flush=True)


def options(about: str | None) -> argparse.ArgumentParser:
    """What benchmarks of steps on the small UNet have in common."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--latent", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--only", nargs="*", default=[])
    return parser


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--whole", action="store_true")
    args = parser.parse_args()
    if not args.whole:
        compare(args)
    if args.whole or not args.only:
        from benchmarks.diffusion_whole_step import whole

        whole(args.batch, args.latent, args.rounds)


if __name__ == "__main__":
    main()
