"""Feature maps of transformers' models: the stock model's, adapted, merged; and of a run that plain transformers loads."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from torch import Tensor, nn

from peft_core import PeftError, adapt, load_run, merge
from peft_core.jobs.hub.backbone import Backbone
from peft_core.jobs.hub.transformers_models import FromTransformers
from tests.vision_peft.conftest import SMALL
from vision_peft.commands import main
from vision_peft.dense.detector import detector
from vision_peft.dense.model import dense_model
from vision_peft.dense.of_transformers import TransformersMaps
from vision_peft.fit import fit

FLAT: dict[str, Any] = dict(
    hidden_size=16, intermediate_size=24, num_hidden_layers=4, num_attention_heads=2, image_size=32, patch_size=8
)
STAGES: dict[str, Any] = dict(
    depths=[1, 1, 1, 1], hidden_sizes=[8, 12, 16, 24], image_size=32, layer_scale_init_value=0.5
)
MODELS: dict[str, Any] = {
    "ViT": lambda: transformers.ViTModel(transformers.ViTConfig(**FLAT), add_pooling_layer=False),
    "Dinov2": lambda: transformers.Dinov2Model(transformers.Dinov2Config(**FLAT, layerscale_value=0.5)),
    "DINOv3ViT": lambda: transformers.DINOv3ViTModel(transformers.DINOv3ViTConfig(**FLAT, num_register_tokens=2)),
    "CLIPVision": lambda: transformers.CLIPVisionModel(transformers.CLIPVisionConfig(**FLAT)),
    "SiglipVision": lambda: transformers.SiglipVisionModel(transformers.SiglipVisionConfig(**FLAT)),
    "ConvNext": lambda: transformers.ConvNextModel(transformers.ConvNextConfig(**STAGES)),
    "DINOv3ConvNext": lambda: transformers.DINOv3ConvNextModel(transformers.DINOv3ConvNextConfig(**STAGES)),
    "ResNet": lambda: transformers.ResNetModel(transformers.ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 12, 16, 24], depths=[1, 1, 1, 1], layer_type="basic")),
    "Swin": lambda: transformers.SwinModel(transformers.SwinConfig(
        image_size=32, patch_size=2, embed_dim=8, depths=[1, 2, 1, 1], num_heads=[1, 1, 2, 2], window_size=2)),
    "Hiera": lambda: transformers.HieraModel(transformers.HieraConfig(
        image_size=[64, 64], embed_dim=8, depths=[1, 1, 2, 1], num_heads=[1, 1, 2, 2])),
}  # fmt: skip
NORMS = {
    "ViT": "layernorm",
    "Dinov2": "layernorm",
    "DINOv3ViT": "norm",
    "CLIPVision": "post_layernorm",
    "SiglipVision": "post_layernorm",
}
"""Of a model of layers, what each of its maps passes."""


def made(name: str) -> Any:
    torch.manual_seed(0)
    model = MODELS[name]()
    for parameter in model.parameters():  # so that norms, scales and positions are not as they begin
        parameter.data.add_(torch.randn_like(parameter), alpha=0.1)
    return model.eval()


def load(name: str, outputs: int, drop_path: float) -> tuple[nn.Module, Backbone]:
    assert outputs == 0
    size = (64, 64) if name == "Hiera" else (32, 32)
    return FromTransformers(made(name), source=name), Backbone(name, "", name, size, (0.5,) * 3, (0.5,) * 3)


def stocks(name: str, x: Tensor) -> list[Tensor]:
    """The maps as the stock model's own outputs have them."""
    model = made(name)
    if name == "Swin":
        seen: list[Any] = []
        for stage in model.encoder.layers:
            stage.blocks[-1].register_forward_hook(lambda module, args, output: seen.append((output[0], args[1])))
        model(x)
        return [each.transpose(1, 2).unflatten(2, tuple(grid)) for each, grid in seen]
    found = model(x, output_hidden_states=True)
    if name == "Hiera":
        return [each.permute(0, 3, 1, 2) for each in found.reshaped_hidden_states[1:]]
    states = found.hidden_states[1:]
    if name not in NORMS:
        return list(states[-4:])
    norm = model.get_submodule(NORMS[name])
    return [norm(each)[:, -16:].transpose(1, 2).unflatten(2, (4, 4)) for each in states]


@pytest.mark.parametrize("name", MODELS)
def test_maps_are_the_stock_models(name: str) -> None:
    x = torch.randn(2, 3, *load(name, 0, 0.0)[1].input_size)
    model, _ = dense_model(load, name, 3, 0.0, "pyramid", 0, 8)
    with torch.no_grad():
        found, want = model.eval().maps(x), stocks(name, x)
        assert len(found) == 4 and model.plain is (name in NORMS)
        for mine, theirs in zip(found, want, strict=True):
            if name == "DINOv3ConvNext" and mine is found[-1]:
                continue  # which comes normed, and its stages do not
            torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=1e-5)
        before = model(x)
        adapt(model, "lora", rank=2)
        torch.testing.assert_close(model(x), before)
        for key, parameter in model.named_parameters():
            if "peft" in key:
                nn.init.normal_(parameter, std=0.3)
        after = model(x)
        assert not torch.allclose(after, before, atol=1e-4)
        torch.testing.assert_close(merge(model)(x), after, atol=1e-4, rtol=1e-4)


def test_other_sizes_and_boxes() -> None:
    x = torch.randn(2, 3, 48, 48)
    for name in ("ViT", "DINOv3ViT", "Swin", "ConvNext"):
        model, about = detector(load, name, 3, 0.0, "pyramid", 48, 32)
        assert about.input_size == (48, 48) and model(x).shape[2] == 3 + 9
        anatomy: Any = model.peft_anatomy()
        grids = [stream.grid for stream in anatomy.streams.values()]
        assert grids == {"Swin": [(24, 24), (12, 12), (6, 6), (3, 3)], "ConvNext": []}.get(name, [(6, 6)])
    with pytest.raises(PeftError, match="Hiera takes no pictures of 96 pixels .*choose another --dense.size"):
        dense_model(load, "Hiera", 3, 0.0, "linear", 96, 8)
    with pytest.raises(PeftError, match="gives no feature maps"):
        TransformersMaps(transformers.BertModel(transformers.BertConfig(**{**FLAT, "hidden_size": 8})), (32, 32), "")


def test_what_joins_a_layer_reaches_the_maps_and_prompts_do_not() -> None:
    x = torch.randn(2, 3, 32, 32)
    model, _ = dense_model(load, "ViT", 3, 0.0, "pyramid", 0, 8)
    first = model.eval().maps(x)
    adapt(model, "vpt", tokens=3, deep=True)
    adapt(model, "adapter", bottleneck=2, blocks=[0])
    found = model.eval().maps(x)
    assert [each.shape for each in found] == [each.shape for each in first]
    assert not torch.allclose(found[0], first[0], atol=1e-4)  # of the prompts


@pytest.fixture(scope="module")
def halves(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six pictures and masks, and beside them a model's folder."""
    folder = tmp_path_factory.mktemp("halves")
    for row in range(6):
        pixels, mask = np.full((32, 32, 3), 40 * row, np.uint8), np.zeros((32, 32), np.uint8)
        mask[:, 16:] = 1
        for kind, image in (("images", pixels), ("masks", mask)):
            (folder / kind).mkdir(exist_ok=True)
            Image.fromarray(image).save(folder / kind / f"{row}.png")
    torch.manual_seed(0)
    transformers.ViTForImageClassification(transformers.ViTConfig(**FLAT)).save_pretrained(folder / "vit")
    return folder


def test_a_run_that_plain_transformers_loads(
    halves: Path, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch
) -> None:
    settings = SMALL | {"method": "lora", "trainer": {"max_epochs": 1, "accelerator": "cpu"}}
    fit(data=str(halves), task="segment", backbone=f"hf:{halves / 'vit'}", out=str(tmp_path / "run"), **settings)
    assert json.loads((tmp_path / "run" / "results.json").read_text(encoding="utf-8"))["mIoU"] >= 0
    capsys.readouterr()
    assert main(["merge", "--run", str(tmp_path / "run"), "--out", str(tmp_path / "m.safetensors")]) == 0
    told = capsys.readouterr().out
    assert "plain transformers loads it" in told
    import PIL
    import safetensors.torch
    import timm

    (tmp_path / "picture.png").write_bytes((halves / "images" / "3.png").read_bytes())
    monkeypatch.chdir(tmp_path)
    known: dict[str, Any] = {
        "transformers": transformers, "timm": timm, "safetensors": safetensors, "torch": torch, "PIL": PIL
    }  # fmt: skip
    exec("\n".join(line.strip() for line in told.splitlines() if line.startswith("  ")), known)
    loaded = load_run(tmp_path / "run")
    with torch.no_grad():
        maps = merge(loaded.model).maps(known["x"])
        torch.testing.assert_close(known["maps"][0], maps[0], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(known["outputs"], loaded.model.head(maps), atol=1e-5, rtol=1e-5)
