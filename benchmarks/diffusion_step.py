"""Time, kept bytes and peak memory of a diffusion training step, as ratios to the floor: the frozen UNet's forward and the
backward pass of its input's gradient. And a whole step beside diffusers' own loop, which encodes picture and text in every
step.

python -m benchmarks.diffusion_step                     # an SD 1.5-shaped UNet of a quarter of the width, batch 2, 32² latents
python -m benchmarks.diffusion_step --rounds 5 --only attention
python -m benchmarks.diffusion_step --whole             # the whole step alone
python -m benchmarks.diffusion_step --beside_peft       # LoRA of the same values beside Hugging Face PEFT's alone
"""

from __future__ import annotations

import argparse
import importlib.util
from collections.abc import Callable

import torch
from torch import Tensor, nn

from benchmarks.diffusion_models import TARGETS, by_peft, ours, small_unet
from benchmarks.measuring import (
    CPU,
    add_precision,
    autocast,
    interleaved,
    machine,
    options,
    peak,
    precisions,
    ratios,
    wanted,
    write_ratios,
)
from diffusion_peft.training.noise import denoising_loss
from peft_core.attach import grafts_named
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
        unet.__dict__["lycoris"] = network
        return unet

    return make


def full(unet: nn.Module) -> nn.Module:
    return unet.requires_grad_(True)


class Step:
    """A training step of one UNet on fixed inputs."""

    def __init__(
        self,
        make: Callable[[nn.Module], nn.Module],
        batch: int,
        latent: int,
        width: int = 80,
        bf16: bool = False,
        device: torch.device = CPU,
    ) -> None:
        self.bf16, self.device = bf16, device
        with device:  # a UNet of full width takes seconds to be made on a CPU
            unet = small_unet(width)
        self.model = make(unet).to(device).train()
        chance = torch.Generator().manual_seed(1)
        self.x, self.target = (torch.randn(batch, 4, latent, latent, generator=chance).to(device) for _ in range(2))
        self.hidden = torch.randn(batch, 77, 768, generator=chance).to(device)
        self.time = torch.full((batch,), 400, device=device)
        network = self.model.__dict__.get("lycoris")  # hooked to the UNet, not a part of it
        beside = [] if network is None else list(network.to(device).parameters())
        trained = [p for p in self.model.parameters() if p.requires_grad] + beside
        self.optimizer = torch.optim.AdamW(trained, lr=1e-5, fused=True) if trained else None

    def loss(self) -> Tensor:
        with autocast(self.device, self.bf16):
            return denoising_loss(self.predicted(), self.target)

    def predicted(self) -> Tensor:
        return self.model(self.x, self.time, self.hidden).sample.float()  # type: ignore[no-any-return]

    def step(self) -> None:
        self.loss().backward()
        if self.optimizer:
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)


def compare(args: argparse.Namespace, precision: str) -> None:
    makers = {"full fine-tuning": full}
    others = {"HF PEFT": ("peft", by_peft), "LyCORIS": ("lycoris", by_lycoris)}
    for tool in [tool for tool, (package, _) in others.items() if importlib.util.find_spec(package) is None]:
        print(f"{tool} is not installed: its rows are left out")
        del others[tool]
    for name in TARGETS:
        makers |= {f"ours, {name}": ours(name)}
        makers |= {f"{tool}, {name}": made_by(name) for tool, (_, made_by) in others.items()}
    shape = (args.batch, args.latent, args.width, precision == "bf16", args.device)
    floor = Step(with_input_gradient, *shape)
    floor_kept, floor_peak = kept_bytes(floor.loss, floor.model), step_peak(floor)
    size = sum(p.numel() for p in floor.model.parameters()) / 1e6
    part = f"UNet of {size:.1f} M, batch {args.batch}, {args.latent}² latents, {precision}"
    print(f"{part}, {args.rounds} interleaved pairs, {machine(args.device)}")
    print(f"| {'variant':34} | time to floor | kept bytes to floor | peak to floor |\n|---|---|---|---|")
    for name in wanted(args.only, makers):
        step = Step(makers[name], *shape)  # two models in memory at a time
        kept, most = kept_bytes(step.loss, step.model) / floor_kept, step_peak(step) / floor_peak
        found = ratios(interleaved({"floor": floor.step, name: step.step}, args.rounds, args.device), "floor")[name]
        print(f"| {name:34} | {found:.2f} | {kept:.2f} | {most:.2f} |", flush=True)
        write_ratios(args.ratios, part, name, time=found, kept=kept, peak=most)


def beside_peft(args: argparse.Namespace, precision: str) -> None:
    """LoRA of the same values on the same modules: ours to PEFT's, of one pair of runs. On a CPU processor time counts."""
    part = f"UNet of width {args.width}, batch {args.batch}, {args.latent}² latents, {precision}"
    print(f"{part}, LoRA beside HF PEFT's, {args.rounds} interleaved pairs, {machine(args.device)}")
    print(f"| {'modules':24} | time to PEFT's | kept bytes to PEFT's | outputs differ by |\n|---|---|---|---|")
    for name in TARGETS:
        steps = {tool: Step(make(name), args.batch, args.latent, args.width, precision == "bf16", args.device)
                 for tool, make in (("ours", ours), ("PEFT", by_peft))}  # fmt: skip
        same_values(steps["ours"].model, steps["PEFT"].model)
        with torch.no_grad():
            one, other = (step.predicted() for step in steps.values())
        apart = ((one - other).norm() / other.norm()).item()
        kept = {tool: kept_bytes(step.loss, step.model) for tool, step in steps.items()}
        seconds = interleaved(
            {tool: step.step for tool, step in steps.items()}, args.rounds, args.device, of_process=True
        )
        time, bytes_ = ratios(seconds, "PEFT")["ours"], kept["ours"] / kept["PEFT"]
        print(f"| {name:24} | {time:.2f} | {bytes_:.2f} | {apart:.0e} |", flush=True)
        write_ratios(args.ratios, part, f"LoRA, {name}, to PEFT's", time=time, kept=bytes_)


@torch.no_grad()
def same_values(ours: nn.Module, theirs: nn.Module) -> None:
    """Both LoRAs away from their start, and equal."""
    paths = {id(module): path for path, module in ours.named_modules()}
    for module, _, change in grafts_named(ours, "lora"):
        change.get_parameter("B").normal_(std=0.02)
        for name in "AB":
            there = theirs.get_parameter(f"{paths[id(module)]}.lora_{name}.default.weight")
            there.copy_(change.get_parameter(name).view_as(there))


def step_peak(step: Step) -> int:
    """Of the second step, so that the optimiser's state is there."""
    step.step()
    return peak(step.step, step.device)


def step_options(about: str | None) -> argparse.ArgumentParser:
    """What benchmarks of steps on the small UNet have in common."""
    parser = options(about)
    parser.add_argument(
        "--width", type=int, default=80, help="channels of its first level, a multiple of 16; SD 1.5 has 320"
    )
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--latent", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--only", nargs="*", default=[])
    return parser


def main() -> None:
    parser = step_options(__doc__)
    add_precision(parser, "float32")
    parser.add_argument("--whole", action="store_true")
    parser.add_argument("--beside_peft", action="store_true")
    args = parser.parse_args()
    for precision in () if args.whole else precisions(args):
        if not args.beside_peft:
            compare(args, precision)
        if not args.only and importlib.util.find_spec("peft") is not None:
            beside_peft(args, precision)
    if args.beside_peft:
        return
    if args.whole or not args.only:
        from benchmarks.diffusion_whole_step import whole

        whole(args)


if __name__ == "__main__":
    main()
