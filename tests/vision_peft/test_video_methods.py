"""ST-Adapter and AIM: exact counts, the formulas worked out slowly, what they refuse."""

from typing import Any

import open_clip
import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from peft_core import NotMergeable, PeftError, adapt, count_parameters, merge
from tests.tiny import MODELS
from vision_peft.video.over_time import DepthwiseOverTime

ST, AIM_BLOCKS, EMBEDDING, NORM = 592_512, 295_872, 8 * 768, 1_536
COUNTS = [
    ("st_adapter", {"width": 384}, 12 * ST, 7_110_144),
    ("st_adapter", {}, 12 * ST, 7_110_144),
    ("st_adapter", {"positions": ("attn", "mlp")}, 24 * ST, 14_220_288),
    ("aim", {"width": 192}, 36 * AIM_BLOCKS + EMBEDDING + NORM, 10_651_392 + 6_144 + 1_536),
    ("aim", {"per_block": 4}, 48 * AIM_BLOCKS + EMBEDDING + NORM, 14_201_856 + 6_144 + 1_536),
    # with K400's head this is the paper's 10,985,104
    ("aim", {"frames": 32}, 10_985_104 - 400 * 769, 10_651_392 + 32 * 768 + 1_536),
]


@pytest.mark.parametrize("tower", ["timm", "open_clip"])
@pytest.mark.parametrize(("method", "hyper", "inserted", "same"), COUNTS)
def test_exact_counts_on_vit_b16(tower: str, method: str, hyper: dict[str, Any], inserted: int, same: int) -> None:
    with torch.device("meta"):
        if tower == "timm":
            model: nn.Module = timm.create_model("vit_base_patch16_224", num_classes=400)
        else:
            config = open_clip.get_model_config("ViT-B-16")
            model = open_clip.transformer.VisionTransformer(
                image_size=224, patch_size=16, heads=12, mlp_ratio=4.0, width=config["vision_cfg"]["width"],
                layers=config["vision_cfg"]["layers"], output_dim=config["embed_dim"],
            )  # fmt: skip
    assert count_parameters(adapt(model, method, **hyper)).inserted == inserted == same


def moved(model: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return model.eval()


def bottleneck(layer: Any, x: Tensor) -> Tensor:
    return layer.up(F.gelu(layer.down(x)))


def test_aim_block_as_its_formula_says() -> None:
    model = moved(adapt(MODELS["vit"].model(), "aim", width=8, frames=4, per_block=4, scale=0.5))
    block, x = model.blocks[1], torch.randn(8, 17, 48)
    step = block.peft["aim"]["over_time"]
    spatial, joint = block.drop_path1.peft["aim"]["output"].change, block.drop_path2.peft["aim"]["mlp_branch"].change
    y = x.clone()
    for clip in range(2):
        for place in range(17):
            inner = block.norm1(x[4 * clip : 4 * clip + 4, place])[None]
            attended = block.attn.forward(inner + bottleneck(step.into, inner))
            y[4 * clip : 4 * clip + 4, place] += bottleneck(step.adapter, attended)[0]
    attended = block.attn.forward(block.norm1(y))
    y = y + attended + bottleneck(spatial, attended)
    normed = block.norm2(y)
    y = y + block.mlp(normed) + 0.5 * bottleneck(joint, normed)
    torch.testing.assert_close(block(x), y, rtol=1e-4, atol=1e-5)


def test_st_adapter_block_as_its_formula_says() -> None:
    model = moved(adapt(MODELS["vit"].model(), "st_adapter", width=8, frames=4, positions=("attn", "mlp")))
    block, x = model.blocks[1], torch.randn(8, 17, 48)

    def adapter(z: Tensor, change: Any) -> Tensor:
        inner = change.down(z[:, 1:]).view(2, 4, 4, 4, 8).permute(0, 4, 1, 2, 3)  # B C T H W
        inner = F.conv3d(inner, change.conv.weight, change.conv.bias, padding=(1, 0, 0), groups=8)
        out = change.up(inner.permute(0, 2, 3, 4, 1).reshape(8, 16, 8))
        return torch.cat((z[:, :1], z[:, 1:] + out), 1)

    y = adapter(x, block.peft["st_adapter"]["before_attn"].change)
    y = y + block.attn.forward(block.norm1(y))
    y = adapter(y, block.drop_path1.peft["st_adapter"]["attn_branch"].change)
    y = y + block.mlp(block.norm2(y))
    torch.testing.assert_close(block(x), y, rtol=1e-4, atol=1e-5)


def test_convolution_over_time_equals_conv3d() -> None:
    conv, x = DepthwiseOverTime(6, {}), torch.randn(2, 5, 4, 6, requires_grad=True)
    nn.init.normal_(conv.weight)
    nn.init.normal_(conv.bias)
    y = conv(x)
    stock = F.conv3d(x.permute(0, 3, 1, 2)[..., None], conv.weight, conv.bias, padding=(1, 0, 0), groups=6)
    torch.testing.assert_close(y, stock[..., 0].permute(0, 2, 3, 1), rtol=1e-5, atol=1e-5)
    past, now, future = conv.weight.view(6, 3).unbind(1)
    slowly = [
        x[:, t] * now + (x[:, t - 1] * past if t else 0) + (x[:, t + 1] * future if t < 4 else 0) for t in range(5)
    ]
    torch.testing.assert_close(y, torch.stack(slowly, 1) + conv.bias, rtol=1e-5, atol=1e-5)


def test_aim_shares_the_frozen_attention() -> None:
    stock, model = MODELS["vit"].model(), adapt(MODELS["vit"].model(), "aim", width=8, frames=2)
    added = [key for key in model.state_dict() if key not in stock.state_dict()]
    assert all("peft" in key for key in added) and not [key for key in added if "attention" in key or ".norm." in key]


@pytest.mark.parametrize("method", ["st_adapter", "aim"])
def test_refusals(method: str) -> None:
    model = adapt(MODELS["vit"].model(), method, width=8, frames=4)
    with pytest.raises(PeftError, match="3 frames is no whole number of clips of 4"):
        model(torch.randn(3, 3, 32, 32))
    with pytest.raises(NotMergeable, match=f"{method} cannot be merged: .*(one frame|attention over time)"):
        merge(model)
    with pytest.raises(PeftError, match="cannot run this timm ViT over time: .*rotary"):
        adapt(MODELS["eva"].model(), method, frames=2)
    with pytest.raises(PeftError, match="frames must be 1 or more, not 0"):
        adapt(MODELS["vit"].model(), method, frames=0)


def test_wrong_settings() -> None:
    with pytest.raises(PeftError, match='positions takes a list, each one of attn, mlp, not "head"'):
        adapt(MODELS["vit"].model(), "st_adapter", positions=("head",))
    with pytest.raises(PeftError, match='per_block takes one of 3, 4, not "5"'):
        adapt(MODELS["vit"].model(), "aim", per_block=5)
