"""Time of a training step and of a sampling step under each control, as ratios to the base's: training to the floor (the
frozen UNet's forward and the backward pass of its input's gradient), sampling to the UNet alone under guidance.

python -m benchmarks.control_step                  # an SD 1.5-shaped UNet of a quarter of the width, batch 2, 32² latents
python -m benchmarks.control_step --rounds 5 --only controlnet gligen
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.diffusion_models import small_unet
from benchmarks.diffusion_step import Step, step_options, with_input_gradient
from benchmarks.measuring import CPU, interleaved, machine, ratios, wanted, write_ratios
from diffusion_peft.control import set_condition
from peft_core import adapt, count_parameters
from peft_core.counting import kept_bytes

METHODS: dict[str, dict[str, Any]] = {
    "controlnet": {},
    "controlnet, cross normalisation": {"join": "norm"},
    "control_lora": {},
    "controlnext": {},
    "t2i_adapter": {},
    "ip_adapter": {},
    "ip_adapter, plus": {"plus": True},
    "gligen": {},
}


def condition(batch: int, latent: int, plus: bool, device: torch.device = CPU) -> dict[str, Tensor]:
    """All that a control reads, for `batch` pictures of eight times the latents' size."""
    chance = torch.Generator().manual_seed(2)
    tokens = (257, 1280) if plus else (1024,)
    features = torch.randn(batch, *tokens, generator=chance)
    corner = torch.rand(batch, 30, 2, generator=chance) / 2
    found = {
        "picture": torch.rand(batch, 3, 8 * latent, 8 * latent, generator=chance), "features": features,
        "null": torch.zeros_like(features), "boxes": torch.cat([corner, corner + 0.4], -1),
        "phrases": torch.randn(batch, 30, 768, generator=chance), "present": torch.ones(batch, 30),
    }  # fmt: skip
    return {name: tensor.to(device) for name, tensor in found.items()}


class ControlStep(Step):
    """A training step, and a sampling step: UNet and control on both halves of guidance."""

    def __init__(self, name: str | None, batch: int, latent: int, width: int = 80, device: torch.device = CPU) -> None:
        method, plus = (name or "").partition(",")[0], (name or "").endswith("plus")
        maker = with_input_gradient if name is None else lambda unet: adapt(unet, method, **METHODS[name])
        super().__init__(maker, batch, latent, width, device=device)
        if name is not None:
            set_condition(self.model, condition(batch, latent, plus, device))

    @torch.no_grad()
    def sample(self) -> None:
        self.model.eval()
        self.model(torch.cat([self.x] * 2), 400, torch.cat([self.hidden] * 2))
        self.model.train()


def parameters(model: nn.Module) -> float:
    return count_parameters(model).inserted / 1e6


def main() -> None:
    args = step_options(__doc__).parse_args()
    names = wanted(args.only, METHODS)
    size = sum(p.numel() for p in small_unet(args.width).parameters()) / 1e6
    part = f"controls, UNet of {size:.1f} M, batch {args.batch}, {args.latent}² latents"
    print(f"{part}, {args.rounds} rounds, {machine(args.device)}")
    print("| control | parameters, M | training step to floor | kept bytes to floor | sampling step to base |")
    print("|---|---|---|---|---|")
    shape = (args.batch, args.latent, args.width, args.device)
    base = ControlStep(None, *shape)
    kept = kept_bytes(base.loss, base.model)
    for name in names:  # one at a time: an SD-sized UNet and its optimiser's state each
        own = ControlStep(name, *shape)
        ratio = kept_bytes(own.loss, own.model) / kept
        trained = ratios(interleaved({"base": base.step, name: own.step}, args.rounds, args.device), "base")[name]
        sampled = ratios(interleaved({"base": base.sample, name: own.sample}, args.rounds, args.device), "base")[name]
        print(f"| {name} | {parameters(own.model):.1f} | {trained:.2f} | {ratio:.2f} | {sampled:.2f} |", flush=True)
        write_ratios(args.ratios, part, name, time=trained, kept=ratio)


if __name__ == "__main__":
    main()
