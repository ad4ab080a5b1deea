"""A ControlNet's step on transformers against diffusers' training scripts, whose own lines were run on the tiny pipelines of
`tests/diffusion_peft/transformers.py` with weights from `tests.parity.golden.values`: huggingface/diffusers 58eb52c,
examples/controlnet/train_controlnet_{sd3,flux}.py, with the posteriors' modes in place of draws, and SD3's
`precondition_outputs`.
"""

import zlib
from typing import Any

import pytest
import torch

from diffusion_peft.base.families import of_kind
from diffusion_peft.base.families.flux import grid_of, packed
from diffusion_peft.control import controls_of, set_condition
from diffusion_peft.control.module import Controlled
from diffusion_peft.training import denoise
from diffusion_peft.training.flow import flow_of
from peft_core import adapt
from tests.diffusion_peft.transformers import pipeline
from tests.parity.golden import golden, values
from tests.parity.test_flow import Loaded, valued, words


@pytest.mark.parametrize("kind", ["sd3", "flux"])
def test_loss_and_gradients_of_diffusers_scripts(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted, made, family = golden(f"control_{kind}"), pipeline(kind), of_kind(kind)
    base: Any = Loaded(made)
    transformer, vae = valued(made.transformer, "t"), valued(made.vae, "v")
    adapt(transformer, "controlnet").train()
    ((_, control),) = controls_of(transformer)
    net: Any = control.net
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            drawn = values(f"c.{name}", parameter.shape).float()
            parameter.copy_(drawn * (1 if parameter.dim() == 1 else 0.6))
        mean, seen = (
            family.encode(vae, values(name, (2, 3, 4, 4)).float().clamp(-1, 1))[0] for name in ("x", "condition")
        )
    normal = family.normal(base)
    latents = (seen - normal[0]) * normal[1]
    torch.testing.assert_close(latents, wanted["condition"], rtol=1e-5, atol=1e-6)
    noise = values("noise", mean.shape).float()
    monkeypatch.setattr(denoise, "offset_noise", lambda *_: noise)
    options = {"weight": "preconditioned"} if kind == "sd3" else {}
    told = 3.5 if kind == "flux" else None
    flow = flow_of(base.config("scheduler"), 2, options)
    module = Controlled(transformer, {}, flow, 10, family=family, normal=normal, told=told)
    monkeypatch.setattr(module, "times", lambda *_: wanted["sigma"])
    batch: dict[str, Any] = {"mean": mean, "logvar": torch.full_like(mean, -torch.inf), "sizes": torch.zeros(2, 6)}
    loss = module.loss(batch | words(kind) | {"condition": {"latents": latents}}, torch.Generator())
    torch.testing.assert_close(loss, wanted["loss"], rtol=1e-5, atol=0)
    loss.backward()
    own = dict(net.named_parameters())
    for key, value in wanted.items():
        if key.startswith("grad."):
            scale = float(value.abs().max())
            torch.testing.assert_close(own[key.removeprefix("grad.")].grad / scale, value / scale, rtol=0, atol=1e-5)


def test_omini_control_as_its_authors_code() -> None:
    """Yuanshi9815/OminiControl 331dd34, omini/pipeline/flux_omini.py with the LoRA of train/config/subject.yaml at rank 2, run
    elsewhere; the condition stands beside the picture."""
    wanted, transformer = golden("omini_control"), valued(pipeline("flux").transformer, "t")
    adapt(transformer, "omini_control", rank=2, placed="beside")
    added = {
        name.split(".peft.")[0] + "." + name[-1]: p for name, p in transformer.named_parameters() if p.requires_grad
    }
    assert sorted(zlib.crc32(name.encode()) for name in added) == wanted["names"].tolist()
    with torch.no_grad():
        for name, parameter in added.items():
            parameter.copy_(values(f"o.{name}", parameter.shape))
    set_condition(transformer, {"latents": wanted["condition"]})
    x = values("noise", (2, 16, 4, 4)).float()
    told = words("flux")
    for checkpointed in (False, True):
        if checkpointed:
            transformer.enable_gradient_checkpointing()
        transformer.zero_grad()
        said: Any = transformer.train()(
            hidden_states=packed(x), timestep=torch.tensor([0.3, 0.8]), guidance=torch.ones(2),
            encoder_hidden_states=told["hidden"], pooled_projections=told["pooled"], txt_ids=torch.zeros(7, 3),
            img_ids=grid_of(x), return_dict=False,
        )[0]  # fmt: skip
        torch.testing.assert_close(said, wanted["pred"], rtol=1e-5, atol=1e-5)
        said.square().mean().backward()
        for key, value in wanted.items():
            if key.startswith("grad."):
                scale = float(value.abs().max())
                grad = added[key.removeprefix("grad.")].grad
                assert grad is not None
                torch.testing.assert_close(grad / scale, value / scale, rtol=0, atol=1e-5)
