"""T-LoRA: its change as LyCORIS 4.1 has it, and the time of each call in its layers, in training and in sampling."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from lycoris.modules.tlora import TLoraModule, clear_timestep_mask, compute_timestep_mask, set_timestep_mask
from torch import nn

from diffusion_peft.commands.fit import fit
from peft_core import NotMergeable, PeftError, adapt, merge
from peft_core.grafts.calls import state
from peft_core.methods.reparameterized.t_lora import Time, Timed, TLoRA
from peft_core.testing import perturb
from tests.diffusion_peft.conftest import SHORT
from tests.tiny import MODELS


def test_change_as_in_lycoris():
    torch.manual_seed(0)
    stock = nn.Linear(16, 24)
    theirs: Any = TLoraModule("x", stock, lora_dim=6, alpha=3.0, use_data_init=False)
    change: Any = Timed(stock.weight, None, 6, 0.5, TLoRA(rank=6, min_rank=2), Time())
    pairs = {"A": theirs.q_layer.weight, "B": theirs.p_layer.weight, "E": theirs.lambda_layer}
    with torch.no_grad():
        for name, tensor in pairs.items():
            getattr(change, f"{name}0").copy_(tensor.view_as(getattr(change, name)))
            getattr(change, name).copy_(tensor.add_(torch.randn_like(tensor)).view_as(getattr(change, name)))
    x, g = torch.randn(4, 5, 16), torch.randn(4, 5, 24)
    for time in (0, 300, 999, 1000):
        set_timestep_mask(compute_timestep_mask(time, 1000, 6, 2))
        state()[change.key] = torch.tensor(time)
        ours, peer = change.on_input(x, F.linear), F.linear(x, theirs.get_diff_weight()[0])
        torch.testing.assert_close(ours, peer, rtol=1e-4, atol=1e-5)
        mine = torch.autograd.grad(ours, [getattr(change, name) for name in pairs], g)
        for one, other in zip(mine, torch.autograd.grad(peer, list(pairs.values()), g), strict=True):
            torch.testing.assert_close(one, other.view_as(one), rtol=1e-4, atol=1e-4)
    clear_timestep_mask()
    del state()[change.key]


def test_start_is_that_of_a_random_matrix():
    torch.manual_seed(0)
    change: Any = Timed(torch.zeros(40, 30), None, 4, 1.0, TLoRA(rank=4, min_rank=1), Time())
    for frame in (change.A, change.B.t()):
        torch.testing.assert_close(frame @ frame.t(), torch.eye(4), rtol=0, atol=1e-5)
    values = torch.stack([torch.linalg.svdvals(torch.randn(40, 30) / 4)[-4:] for _ in range(50)])
    assert ((change.E - values.mean(0)).abs() < 5 * values.std(0)).all()


@pytest.mark.parametrize("name", ["unet", "mmdit"])
def test_each_sample_has_its_time(name: str):
    family = MODELS[name]
    model = adapt(family.model().eval(), "t_lora", rank=4, min_rank=1, timesteps=100, targets=("attn",))
    perturb(model)
    batch = family.batch()
    both = model(**batch | {"timestep": torch.tensor([10, 90])}).sample
    for at, time in enumerate((10, 90)):
        alone = model(
            **{key: value[at : at + 1] for key, value in batch.items()} | {"timestep": torch.tensor(time)[None]}
        )
        torch.testing.assert_close(both[at : at + 1], alone.sample, rtol=1e-4, atol=1e-5)
    kept = {}
    for module in model.modules():
        if isinstance(module, Timed):
            state()[module.key] = torch.tensor([0, 40, 99, 100])
            kept = {int(m.sum()) for m in module.mask(torch.zeros(4, 3, 8))}  # type: ignore[union-attr]
            del state()[module.key]
    assert kept == {2 * (math.floor((100 - t) / 100 * 3) + 1) for t in (0, 40, 99, 100)}
    with pytest.raises(NotMergeable, match="time of each call"):
        merge(model)


def test_what_does_not_go_is_told():
    with pytest.raises(PeftError, match="min_rank 32, above the rank 4 at"):
        adapt(MODELS["unet"].model(), "t_lora", rank=4)
    with pytest.raises(PeftError, match="works on a diffusers UNet or a diffusers MMDiT"):
        adapt(MODELS["vit"].model(), "t_lora")


def test_trains_and_draws(sd15: str, toys: str, tmp_path: Path):
    method = {"name": "t_lora", "rank": 4, "min_rank": 1}
    results = fit(data=toys, base=sd15, prompt="a toy", method=method, lr=0.01, out=str(tmp_path / "run"), **SHORT)
    assert results["parameters"]["unet"]["by_method"]["t_lora"] > 0


def test_the_time_is_known_when_blocks_run_again():
    gradients = []
    for checkpointed in (False, True):
        model: Any = adapt(MODELS["unet"].model().train(), "t_lora", rank=4, min_rank=1, timesteps=100)
        perturb(model)
        if checkpointed:
            model.enable_gradient_checkpointing()
        y = MODELS["unet"](model)
        y.square().sum().backward()
        gradients.append([p.grad for p in model.parameters() if p.requires_grad])
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other)
