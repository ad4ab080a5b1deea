"""Heads and channels that go while LoRA trains, against aim-uofa/LoRAPrune 4da5272 in float64: its `Linear` in attention and MLP
of timm's ViT, `update_sensitivity_dict`, `schedule_sparsity_ratio` and `local_prune` at every second of ten steps; and what is
cut out of the model at last."""

import re
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import nn

from peft_core import PeftError, adapt, lifecycle, merge
from peft_core.attach import grafts_named, record_of
from peft_core.counting import count_parameters
from peft_core.lifecycle import Progress
from peft_core.parts.selection.cutting import cut_out
from peft_core.parts.selection.heads_and_channels import Dropped
from tests.parity.golden import golden
from tests.parity.test_official import LABELS, PICTURES, vit
from tests.parity.test_official_vectors import fill


def there(key: str) -> str:
    block, role, matrix = re.fullmatch(r"(blocks\.\d).*\.peft\.\w+\.(\w+)\.([AB])", key).groups()  # type: ignore[union-attr]
    return f"{block}.{role}.{matrix}"


def gone(model: nn.Module, name: str) -> dict[str, torch.Tensor]:
    found: Any = {g.group: g.gone for *_, g in grafts_named(model, name) if isinstance(g, Dropped)}
    return found


def test_what_goes_and_when_is_the_authors() -> None:
    wanted = golden("lora_prune")
    settings: dict[str, Any] = dict(rank=3, alpha=6, dropout=0.0, every=2, spare_ends=False)
    model = adapt(vit(num_heads=4), "lora_prune", train_head=False, **settings).train()
    fill(model, there)
    trained = [p for p in model.parameters() if p.requires_grad]
    for step in range(9):
        logits = model(PICTURES)
        torch.testing.assert_close(logits, wanted[f"logits.{step}"], rtol=1e-9, atol=1e-10)
        F.cross_entropy(logits, LABELS).backward()
        lifecycle.before_step(model)
        with torch.no_grad():
            for parameter in trained:
                parameter -= 0.5 * parameter.grad
        lifecycle.after_step(model, Progress(step + 1, 10))
        model.zero_grad()
        for body, mask in gone(model, "lora_prune").items():
            assert mask.equal(wanted[f"gone.{step}.{body.replace('blocks.', '')}"]), (step, body)
    importance = record_of(model).adaptations["lora_prune"].memory["importance"]
    for body, score in importance.items():
        torch.testing.assert_close(
            score, wanted[f"importance.{body.replace('.attn', '.self_attn')}"], rtol=1e-9, atol=1e-12
        )
    lifecycle.after_step(model, Progress(10, 10))  # the round that closes the ramp
    assert {body: int(mask.sum()) for body, mask in gone(model, "lora_prune").items() if ".0." in body} == {
        "blocks.0.attn": 2, "blocks.0.mlp": 32,
    }  # fmt: skip


@pytest.mark.parametrize("name", ["lora_prune", "splora"])
def test_the_merged_model_is_cut_to_what_is_left(name: str) -> None:
    changes: dict[str, Any] = dict(num_heads=4, depth=3, init_values=0.5, qk_norm=True)
    model = adapt(vit(**changes), name, rank=2, dropout=0.0, every=1)
    for step in range(4):
        F.cross_entropy(model(PICTURES), LABELS).backward()
        lifecycle.before_step(model)
        lifecycle.after_step(model, Progress(step + 1, 4))
    lifecycle.finish(model)
    y = model.eval()(PICTURES)
    with pytest.raises(PeftError, match="merge"):
        cut_out(model)
    before = count_parameters(merge(model)).total
    found = cut_out(model)
    torch.testing.assert_close(model(PICTURES), y, rtol=1e-9, atol=1e-10)
    assert found == {
        "blocks.0.attn": (2, 4), "blocks.0.mlp": (32, 64), "blocks.1.attn": (2, 4), "blocks.1.mlp": (32, 64),
        "blocks.2.attn": (4, 4), "blocks.2.mlp": (64, 64),
    }  # fmt: skip
    a_block = 16 * 8 * 4 + 3 * 8 + 2 * 16 * 32 + 32
    assert before - count_parameters(model).total == 2 * a_block
    assert type(model) is timm.models.VisionTransformer and cut_out(model)["blocks.0.attn"] == (2, 2)


def test_a_layer_between_heads_and_what_takes_them_leaves_them_whole() -> None:
    model = vit(scale_attn_norm=True, scale_mlp_norm=True)
    with torch.no_grad():
        model.blocks[0].attn.qkv.weight.zero_()
    assert cut_out(model) == {}


def test_bad_settings_are_refused() -> None:
    with pytest.raises(PeftError, match="no time between"):
        adapt(vit(), "splora", warmup=0.5, cooldown=0.5)
    with pytest.raises(PeftError, match="Progress"):
        lifecycle.after_step(adapt(vit(), "lora_prune", rank=2, dropout=0.0), 0.5)
