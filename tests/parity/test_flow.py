"""A step's loss against diffusers' training scripts, whose own lines were run on the tiny pipelines of
`tests/diffusion_peft/transformers.py` with weights from `tests.parity.golden.values`: huggingface/diffusers 58eb52c,
examples/dreambooth/train_dreambooth_lora_{sd3,flux,flux2_klein,z_image,qwen_image,sana,lumina2}.py.

Each golden file has x₀ as the script brings it to the denoiser (its posterior's mode), and σ and the loss under each of its
weighting schemes, drawn at torch's seeds 0, 1, …; `preconditioned` is SD3's `precondition_outputs`. Lumina's σ is its script's
share of the picture, ours that of the noise.
"""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from diffusion_peft.base.families import of_kind
from diffusion_peft.training import denoise
from diffusion_peft.training.denoise import Denoiser
from diffusion_peft.training.flow import flow_of
from tests.diffusion_peft.transformers import pipeline
from tests.parity.golden import golden, values

SCHEMES = ("none", "logit_normal", "mode", "sigma_sqrt", "cosmap", "preconditioned")
WORDS = {"sd3": 48, "flux": 32, "flux2": 96, "z_image": 32, "qwen_image": 32, "sana": 32, "lumina2": 32}
POOLED = {"sd3": 40, "flux": 24}
SIDES = {"sana": 8, "lumina2": 32, "qwen_image": 8, "flux2": 8}


def valued(model: nn.Module, prefix: str) -> nn.Module:
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            drawn = values(f"{prefix}.{name}", parameter.shape).float()
            parameter.copy_(drawn * (1 if parameter.dim() == 1 else 0.6))
        for name, buffer in model.named_buffers():
            if name.endswith("running_mean"):
                buffer.copy_(values(f"{prefix}.{name}", buffer.shape))
            if name.endswith("running_var"):
                buffer.copy_(values(f"{prefix}.{name}", buffer.shape).abs() + 0.5)
    return model.eval()


class Loaded:
    """A base whose parts are in memory."""

    def __init__(self, parts: Any) -> None:
        self.parts = parts

    def part(self, name: str) -> Any:
        return getattr(self.parts, name)

    def config(self, name: str) -> dict[str, Any]:
        return dict(self.part(name).config)


def words(kind: str) -> dict[str, Tensor]:
    found = {"hidden": values("hidden", (2, 7, WORDS[kind])).float()}
    if kind in POOLED:
        found["pooled"] = values("pooled", (2, POOLED[kind])).float()
    if kind in ("sana", "lumina2"):
        found["mask"] = torch.tensor([[1] * 7, [1] * 5 + [0] * 2])
    return found


@pytest.mark.parametrize("kind", WORDS)
def test_losses_of_diffusers_scripts(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted, made, family = golden(f"flow_{kind}"), pipeline(kind), of_kind(kind)
    base: Any = Loaded(made)
    transformer = valued(made.transformer, "t")
    vae = valued(made.vae, "v")
    side = SIDES.get(kind, 4)
    with torch.no_grad():
        mean, _ = family.encode(vae, values("x", (2, 3, side, side)).float().clamp(-1, 1))
    normal = family.normal(base)
    torch.testing.assert_close((mean - normal[0]) * normal[1], wanted["x0"], rtol=1e-5, atol=1e-5)
    shape = (2, 16, 1, 4, 4) if kind == "qwen_image" else wanted["x0"].shape
    noise = values("noise", shape).float().view_as(wanted["x0"])
    monkeypatch.setattr(denoise, "offset_noise", lambda *_: noise)
    batch = {"mean": mean, "logvar": torch.full_like(mean, -torch.inf), "sizes": torch.zeros(2, 6)} | words(kind)
    patch = 1 if kind == "flux2" else 2
    for place, scheme in enumerate(SCHEMES):
        if f"loss.{scheme}" not in wanted:
            continue
        sigma, options = wanted[f"sigma.{scheme}"], {}
        if scheme in ("logit_normal", "mode"):
            options["density"] = scheme
        elif scheme != "none":
            options["weight"] = scheme
        flow = flow_of(base.config("scheduler"), patch, options)
        drawn = flow.times(mean, torch.Generator().manual_seed(place if place < 5 else 0))
        if kind == "lumina2":  # whose script takes the share of the picture
            sigma = 1 - sigma
            drawn = 1 - drawn
            if scheme == "sigma_sqrt":
                continue
        else:
            torch.testing.assert_close(drawn, sigma, rtol=1e-5, atol=0)
        told = 3.5 if made.transformer.config.get("guidance_embeds") else None
        module = Denoiser(transformer, {}, flow, 10, family=family, normal=normal, told=told)
        monkeypatch.setattr(module, "times", lambda *_, at=sigma: at)
        with torch.no_grad():
            loss = module.loss(batch, torch.Generator())
        torch.testing.assert_close(loss.double(), wanted[f"loss.{scheme}"], rtol=1e-5, atol=0)


def test_the_shift_of_a_resolution_is_that_of_the_scheduler() -> None:
    from diffusers import FlowMatchEulerDiscreteScheduler
    from diffusers.pipelines.flux.pipeline_flux import calculate_shift

    for kind in ("exponential", "linear"):
        stock = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, time_shift_type=kind, max_shift=0.9)
        flow = flow_of(dict(stock.config), 2, {"shift": "resolution"})
        stock.set_timesteps(
            1000, sigmas=[k / 1000 for k in range(1000, 0, -1)], mu=calculate_shift(1024, max_shift=0.9)
        )
        torch.testing.assert_close(flow.grid(1024), stock.sigmas[:-1], rtol=1e-5, atol=1e-6)
