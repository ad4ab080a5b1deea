"""Backbones of transformers, from a folder: their own size, mean and std, a new head, the adapter on the stock model."""

import json
import shutil
import textwrap
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
import transformers
from safetensors.torch import save_file
from transformers import (
    BertConfig,
    BertModel,
    DINOv3ViTConfig,
    DINOv3ViTModel,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessor,
)

from peft_core import PeftError, adapt, load_adapter, merge, save_adapter
from peft_core.jobs.hub.reach import absolute
from vision_peft import load_backbone

SIZES: dict[str, Any] = dict(
    hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2, image_size=32, patch_size=8
)
PICTURES = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    where = tmp_path_factory.mktemp("models") / "vit"
    torch.manual_seed(0)
    ViTForImageClassification(ViTConfig(**SIZES, num_labels=3)).save_pretrained(where)
    look = ViTImageProcessor(size={"height": 32, "width": 32}, image_mean=[0.1, 0.2, 0.3], image_std=[0.4, 0.5, 0.6])
    look.save_pretrained(where)
    return where


def as_printed(model: Any, folder: Path) -> torch.Tensor:
    """What the lines give that `merge` prints."""
    save_file(model.stock_state(), folder / "merged.safetensors")
    known: dict[str, Any] = {"transformers": transformers, "safetensors": safetensors, "torch": torch, "x": PICTURES}
    exec(textwrap.dedent(model.how_to_load(folder / "merged.safetensors")), known)
    return known["logits"]


def test_a_folder_says_what_it_expects_and_keeps_its_weights(folder: Path, tmp_path: Path):
    model, about = load_backbone(f"hf:{folder}", 5)
    assert about.input_size == (32, 32) and about.mean == (0.1, 0.2, 0.3) and about.std == (0.4, 0.5, 0.6)
    assert model(PICTURES).shape == (2, 5) and about.architecture == "ViTForImageClassification"
    torch.manual_seed(1)
    other, _ = load_backbone(str(folder), 5)  # without the word: the folder says whose it is
    stock = ViTForImageClassification.from_pretrained(folder)
    kept = {key: value for key, value in stock.state_dict().items() if not key.startswith("classifier")}
    for each in (model, other):
        state = each.state_dict()
        assert all(torch.equal(state[f"model.{key}"], value) for key, value in kept.items())
    adapt(model, "lora", rank=2)
    for parameter in model.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.1)
    trained = {key for key, p in model.named_parameters() if p.requires_grad and "peft" not in key}
    assert trained == {"model.classifier.weight", "model.classifier.bias"}
    save_adapter(model, tmp_path / "adapter")
    torch.testing.assert_close(load_adapter(other, tmp_path / "adapter").eval()(PICTURES), model.eval()(PICTURES))
    y = model(PICTURES)
    torch.testing.assert_close(merge(model)(PICTURES), y, rtol=1e-5, atol=1e-5)
    assert torch.equal(as_printed(model, tmp_path), model(PICTURES))


def test_a_model_without_a_classifier_gets_a_head(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    DINOv3ViTModel(DINOv3ViTConfig(**SIZES, num_register_tokens=2)).save_pretrained(tmp_path)
    model, about = load_backbone(f"hf:{tmp_path}", 5, drop_path=0.1)
    assert about.input_size == (32, 32) and about.mean == (0.5, 0.5, 0.5) and model(PICTURES).shape == (2, 5)
    adapt(model, "vpt", tokens=2, deep=True)
    assert {key for key, p in model.named_parameters() if p.requires_grad and "peft" not in key} == {
        "head.weight", "head.bias",
    }  # fmt: skip
    stock, _ = load_backbone(f"hf:{tmp_path}", 5)
    torch.testing.assert_close(as_printed(stock, tmp_path), stock.eval()(PICTURES))
    ViTForImageClassification(ViTConfig(**SIZES)).save_pretrained(tmp_path / "vit")
    load_backbone(f"hf:{tmp_path / 'vit'}", 5, drop_path=0.1)  # as the recipes have it
    assert "has no stochastic depth" in capsys.readouterr().err


def test_bad_folders(folder: Path, tmp_path: Path):
    with pytest.raises(PeftError, match="is no model folder: it needs config.json"):
        load_backbone("hf:./nowhere", 5)
    ViTForImageClassification(ViTConfig(**SIZES | {"num_hidden_layers": 1})).save_pretrained(tmp_path)
    (tmp_path / "config.json").write_bytes((folder / "config.json").read_bytes())
    with pytest.raises(PeftError, match="do not fit a ViTForImageClassification: they have no vit.layers.1"):
        load_backbone(f"hf:{tmp_path}", 5)
    BertModel(
        BertConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=48)
    ).save_pretrained(tmp_path / "text")
    with pytest.raises(PeftError, match="no model of pictures"):
        load_backbone(f"hf:{tmp_path / 'text'}", 5)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (tmp_path / "config.json").write_text(json.dumps(config | {"model_type": "nothing"}), encoding="utf-8")
    with pytest.raises(PeftError, match="transformers cannot read"):
        load_backbone(f"hf:{tmp_path}", 5)
    shutil.copytree(folder, tmp_path / "look")
    (tmp_path / "look" / "preprocessor_config.json").write_text("{", encoding="utf-8")
    with pytest.raises(PeftError, match="preprocessor_config.json is damaged, no JSON"):
        load_backbone(f"hf:{tmp_path / 'look'}", 5)
    assert absolute("hf:facebook/dinov2-small") == "hf:facebook/dinov2-small"
    assert absolute("hf:./x") == f"hf:{Path('x').absolute()}"
