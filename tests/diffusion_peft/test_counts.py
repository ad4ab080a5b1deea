"""Exact parameter counts on the UNets and text encoders of Stable Diffusion, built on the meta device from their shapes."""

from collections.abc import Iterator
from functools import cache
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from peft_core import adapt, count_parameters, remove
from peft_core.registry import make_method

SD15 = dict(
    sample_size=64, in_channels=4, out_channels=4, layers_per_block=2, block_out_channels=(320, 640, 1280, 1280),
    down_block_types=("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
    up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3, cross_attention_dim=768, attention_head_dim=8,
)  # fmt: skip
SDXL = dict(
    sample_size=128, in_channels=4, out_channels=4, layers_per_block=2, block_out_channels=(320, 640, 1280),
    down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"), cross_attention_dim=2048,
    attention_head_dim=(5, 10, 20), transformer_layers_per_block=(1, 2, 10), use_linear_projection=True,
    addition_embed_type="text_time", addition_time_embed_dim=256, projection_class_embeddings_input_dim=2816,
)  # fmt: skip
FF = ("attn", "cross_attn", "mlp")
PROJ = (*FF, "proj_io")
LOCON = (*PROJ, "conv")
TIME = (*LOCON, "time")


@cache
def unet(name: str) -> nn.Module:
    with torch.device("meta"):
        return UNet2DConditionModel(**{"sd15": SD15, "sdxl": SDXL}[name])


def inserted(model: nn.Module, method: str, hyper: dict[str, Any]) -> int:
    with torch.device("meta"):
        adapt(model, method, **hyper)
    n = count_parameters(model)
    remove(model)
    assert n.trainable == n.inserted == n.by_method[method]
    return n.inserted


ROWS: list[tuple[str, dict[str, Any], int, int]] = [
    ("lora", {"rank": 4}, 797_184, 5_806_080),
    ("t_lora", {"rank": 64}, 12_763_136, 92_933_120),
    ("lora", {"rank": 8}, 1_594_368, 11_612_160),
    ("lora", {"rank": 16}, 3_188_736, 23_224_320),
    ("lora", {"rank": 32}, 6_377_472, 46_448_640),
    ("lora", {"rank": 4, "targets": ("cross_k", "cross_v")}, 198_144, 1_812_480),
    ("lora", {"rank": 4, "targets": FF}, 1_496_064, 10_465_280),
    ("lora", {"rank": 16, "targets": FF}, 5_984_256, 41_861_120),
    ("lora", {"rank": 4, "targets": PROJ}, 1_695_744, 10_639_360),
    ("lora", {"rank": 16, "targets": PROJ}, 6_782_976, 42_557_440),
    ("lora", {"rank": 4, "targets": LOCON}, 4_009_984, 12_154_880),
    ("lora", {"rank": 16, "targets": LOCON}, 16_039_936, 48_619_520),
    ("lora", {"rank": 4, "targets": TIME}, 4_203_264, 12_296_960),
    ("lora", {"rank": 16, "targets": TIME}, 16_813_056, 49_187_840),
    ("lora", {"rank": 4, "targets": ("cross_attn",)}, 397_824, 3_143_680),
    ("dora", {"rank": 4}, 897_024, 6_471_680),
    ("dora", {"rank": 4, "targets": TIME}, 4_518_784, 13_785_920),
    ("loha", {"rank": 4}, 1_594_368, 11_612_160),
    ("loha", {"rank": 4, "targets": TIME, "tucker": True}, 4_877_888, 22_290_624),
    ("loha", {"rank": 4, "targets": TIME}, 8_406_528, 24_593_920),
    ("lokr", {"rank": 4}, 106_496, 716_480),
    ("lokr", {"rank": 4, "factor": 8}, 107_840, 761_600),
    ("lokr", {"rank": 16, "factor": 8}, 406_784, 2_938_880),
    ("lokr", {"rank": 16, "factor": 8, "full_matrix": True}, 1_469_312, 14_960_640),
    ("lokr", {"rank": 4, "factor": 8, "targets": TIME, "tucker": True}, 328_960, 1_448_384),
    ("oft", {}, 1_541_568, 12_181_760),
    ("oft", {"block_count": 8}, 5_776_320, 74_707_200),
    ("oft", {"block_count": 4}, 11_602_368, 149_807_360),
    ("ia3", {}, 99_840, 665_600),
    ("custom_diffusion", {}, 19_169_280, 340_787_200),
    ("custom_diffusion", {"targets": ("cross_attn",)}, 43_962_560, 545_670_400),
    ("bitfit", {}, 343_684, 1_289_284),
    ("diff_fit", {}, 343_684 + 100_160 + 37_440, 1_289_284 + 294_080 + 249_600),
    ("diff_fit", {"scaled": ("attn", "cross_attn")}, 343_684 + 100_160 + 99_840, 1_289_284 + 294_080 + 665_600),
]


PLACES = ("lora", "custom_diffusion", "bitfit", "diff_fit")
"""Between them they stand wherever an adapter may: SDXL's thousands of modules are walked for these each time, for others in the
slow tests."""


def rows() -> Iterator[Any]:
    """The first row of each method and targets; those that differ in a size alone are slow."""
    seen: set[str] = set()
    for method, hyper, *counts in ROWS:
        kind = str(
            (method, {key: value for key, value in hyper.items() if key not in ("rank", "factor", "block_count")})
        )
        for base, count in zip(("sd15", "sdxl"), counts, strict=True):
            rare = kind in seen or (base == "sdxl" and method not in PLACES)
            yield pytest.param(base, method, hyper, count, marks=pytest.mark.slow if rare else ())
        seen.add(kind)


@pytest.mark.parametrize("base, method, hyper, count", [*rows()], ids=str)
def test_unets(base: str, method: str, hyper: dict[str, Any], count: int):
    assert inserted(unet(base), method, hyper) == count


CLIP_L = dict(hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12, projection_dim=768)
BIG_G = dict(
    hidden_size=1280, intermediate_size=5120, num_hidden_layers=32, num_attention_heads=20, projection_dim=1280
)


def test_text_encoders():
    with torch.device("meta"):
        small, big = CLIPTextModel(CLIPTextConfig(**CLIP_L)), CLIPTextModelWithProjection(CLIPTextConfig(**BIG_G))
    assert sum(p.numel() for p in small.parameters()) == 123_060_480
    assert sum(p.numel() for p in big.parameters()) == 694_659_840
    assert inserted(small, "lora", {"rank": 4}) == 294_912
    assert inserted(small, "lora", {"rank": 4, "targets": ("attn", "mlp")}) == 663_552
    assert inserted(small, "textual_inversion", {"first": 49408, "initial": (320, 320)}) == 2 * 768
    assert inserted(big, "textual_inversion", {"first": 49408, "initial": (320, 320)}) == 2 * 1280
    assert inserted(big, "lora", {"rank": 4}) == 1_310_720
    assert inserted(big, "lora", {"rank": 4, "targets": ("attn", "mlp")}) == 2_949_120


def test_blocks_are_down_middle_and_up_blocks_with_all_their_layers():
    model = unet("sd15")
    whole = inserted(model, "lora", {"rank": 4, "targets": TIME})
    parts = [inserted(model, "lora", {"rank": 4, "targets": TIME, "blocks": (block,)}) for block in range(9)]
    assert sum(parts) == whole
    assert inserted(model, "lora", {"rank": [0, 0, 0, 4, 4, 0, 0, 0, 8], "targets": TIME}) == (
        parts[3] + parts[4] + 2 * parts[8]
    )
    adapt(model, "lora", rank=4, targets=TIME, blocks=(4,))
    assert {key.split(".")[0] for key, p in model.named_parameters() if p.requires_grad} == {"mid_block"}
    remove(model)
    biases = sum(inserted(model, "bitfit", {"blocks": (block,)}) for block in range(9))
    outside = 320 + 4 + 1280 + 1280 + 320  # conv_in, conv_out, the time embedding's two layers, the last norm
    assert biases == 343_684 - outside


def test_roles_of_the_unet_and_the_time_embedding():
    model = unet("sd15")
    time = 4 * (320 + 1280) + 4 * (1280 + 1280)
    assert inserted(model, "lora", {"rank": 4, "targets": ("time_embed",)}) == time
    added = 4 * (2816 + 1280) + 4 * (1280 + 1280)
    assert inserted(unet("sdxl"), "lora", {"rank": 4, "targets": ("time_embed",)}) == time + added


def test_locon_is_loras_preset():
    assert make_method("locon", rank=4) == make_method(
        "lora", rank=4, targets=("attn", "cross_attn", "mlp", "proj_io", "conv")
    )
