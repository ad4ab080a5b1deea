"""A step's loss on pairs of source and target against diffusers' training scripts, whose own lines were run on the tiny
pipelines of `tests/diffusion_peft` with weights from `tests.parity.golden.values`: huggingface/diffusers 58eb52c,
examples/instruct_pix2pix/train_instruct_pix2pix.py and examples/dreambooth/train_dreambooth_lora_flux_kontext.py.

Each golden file has x₀, the noise, the times (σ) and the loss; InstructPix2Pix's the number u too by which it drops.
"""

from typing import Any

import pytest
import torch
from torch import Tensor

from diffusion_peft.base.families import of_kind
from diffusion_peft.data.examples import Example
from diffusion_peft.data.latents import Captions, Latent
from diffusion_peft.editing.examples import Edits
from diffusion_peft.training import denoise
from diffusion_peft.training.denoise import Denoiser
from diffusion_peft.training.flow import flow_of
from diffusion_peft.training.noise import Discrete, alphas_of
from tests.diffusion_peft.pipelines import stable_diffusion
from tests.diffusion_peft.transformers import pipeline
from tests.parity.golden import golden, values
from tests.parity.test_flow import Loaded, valued, words


class Editing(Loaded):
    edits = True


def pixels(name: str, *size: int) -> Tensor:
    return values(name, size).float().clamp(-1, 1)


def loss_of(module: Denoiser, batch: dict[str, Any], wanted: dict[str, Tensor], patch: pytest.MonkeyPatch) -> Tensor:
    patch.setattr(denoise, "offset_noise", lambda *_: wanted["noise"])
    patch.setattr(module, "times", lambda *_: wanted["time"] if "time" in wanted else wanted["sigma"])
    with torch.no_grad():
        return module.loss(batch, torch.Generator()).double()


def test_instruct_pix2pix(monkeypatch: pytest.MonkeyPatch) -> None:
    wanted, made, family = golden("edit_pix2pix"), stable_diffusion("sd15"), of_kind("sd1")
    base: Any = Editing(made)
    family.widen(base, made.unet)
    unet, vae, encoder = valued(made.unet, "u"), valued(made.vae, "v"), valued(made.text_encoder, "t")
    texts = ["", "make it red", "blue", "add a hat", "no sky"]
    ids = made.tokenizer(texts, max_length=77, padding="max_length", truncation=True, return_tensors="pt").input_ids
    with torch.no_grad():
        hidden = encoder(ids)[0]
        source, _ = family.encode(vae, pixels("source", 4, 3, 8, 8))
    mean = wanted["x0"] / vae.config.scaling_factor  # as the script drew it
    latents = [Latent(each, torch.full_like(each, -torch.inf), (8, 8, 0, 0, 8, 8)) for each in mean]
    edits = Edits(
        [Example(latent, (number,)) for number, latent in enumerate(latents, 1)],
        Captions(texts, rows=[{"hidden": each} for each in hidden]), sources=list(family.source(base, source)), drop=0.05,
    )  # fmt: skip
    with monkeypatch.context() as patch:
        patch.setattr(torch, "rand", lambda *_, **__: wanted["u"])
        batch = edits.batch(range(4), torch.Generator())
    process = Discrete(alphas_of(dict(made.scheduler.config)))
    module = Denoiser(unet, {}, process, 10, family=family, normal=family.normal(base))
    torch.testing.assert_close(loss_of(module, batch, wanted, monkeypatch), wanted["loss"], rtol=1e-5, atol=0)


def test_kontext(monkeypatch: pytest.MonkeyPatch) -> None:
    wanted, made, family = golden("edit_kontext"), pipeline("flux"), of_kind("flux")
    base: Any = Editing(made)
    transformer, vae = valued(made.transformer, "t"), valued(made.vae, "v")
    with torch.no_grad():
        mean, _ = family.encode(vae, pixels("target", 2, 3, 8, 4))
        source, _ = family.encode(vae, pixels("source", 2, 3, 8, 4))
    normal = family.normal(base)
    torch.testing.assert_close((mean - normal[0]) * normal[1], wanted["x0"], rtol=1e-5, atol=1e-5)
    batch = {"mean": mean, "logvar": torch.full_like(mean, -torch.inf), "source": family.source(base, source)} | words(
        "flux"
    )
    flow = flow_of(dict(made.scheduler.config), 2, {})
    module = Denoiser(transformer, {}, flow, 10, family=family, normal=normal, told=1.0)
    torch.testing.assert_close(loss_of(module, batch, wanted, monkeypatch), wanted["loss"], rtol=1e-5, atol=0)
