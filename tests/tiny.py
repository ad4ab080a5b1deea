"""Tiny models of every family, with random weights that do something: residual branches, layer scales and heads included."""

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import open_clip
import timm
import torch
from diffusers import FluxTransformer2DModel, SD3Transformer2DModel, UNet2DConditionModel
from torch import Tensor, nn
from transformers import (
    CLIPConfig,
    CLIPModel,
    CLIPTextConfig,
    CLIPTextModel,
    DINOv3ViTConfig,
    DINOv3ViTModel,
    VideoMAEConfig,
    VideoMAEForVideoClassification,
)

from diffusion_peft.control import controls_of, set_condition
from peft_core.anatomies import Anatomy, describe
from peft_core.testing import Family
from peft_core.testing.families import Written


@dataclass(frozen=True)
class Tiny(Family):
    """A family's model as the contract takes it.

    Args:
        tokens: whether it takes prompts as it is, without a tower named.
        linears: roles of its linear layers and convolutions.
        idle: parameters of methods here that no output depends on, as nobody reads what the last block makes of words, or of a
            condition.
    """

    tokens: bool = True
    linears: tuple[str, ...] = ("q", "k", "v", "proj", "fc1", "fc2")
    idle: tuple[str, ...] = ()

    @functools.cached_property
    def unused(self) -> set[str]:
        return super().unused | set(self.idle)


def vit(name: str = "vit_tiny_patch16_224", **changes: Any) -> Callable[[], nn.Module]:
    settings = dict(img_size=32, patch_size=8, embed_dim=48, num_heads=3, depth=3, num_classes=5) | changes
    return lambda: timm.create_model(name, **settings)


@functools.cache
def _outline() -> Written:
    with torch.device("meta"):
        return Written(timm.create_model("vit_base_patch16_224", num_classes=100))


def vit_b16() -> nn.Module:
    """ViT-B/16 with 100 classes on the meta device, to count on."""
    return _outline().read()


def pictures(name: str = "x", size: int = 32) -> Callable[[], dict[str, Any]]:
    def batch() -> dict[str, Any]:
        return {name: torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(3))}

    return batch


def words(name: str, length: int = 12) -> Callable[[], dict[str, Any]]:
    def batch() -> dict[str, Any]:
        tokens = torch.randint(1, 90, (2, length), generator=torch.Generator().manual_seed(3))
        tokens[:, -1] = 99  # the highest id is the end of the text
        return {name: tokens}

    return batch


def clip(**text: Any) -> Callable[[], nn.Module]:
    vision = dict(image_size=32, layers=2, width=64, head_width=16, patch_size=8)
    words = dict(context_length=12, vocab_size=100, width=32, heads=2, layers=2) | text
    scale = math.log(100)  # what training ends at
    return lambda: open_clip.CLIP(
        embed_dim=16, vision_cfg=vision, text_cfg=words, quick_gelu=True, init_logit_scale=scale
    )


def custom_text_clip() -> nn.Module:
    vision = dict(timm_model_name="test_vit", timm_pool="avg", timm_proj="linear", image_size=64)
    text = dict(context_length=12, vocab_size=100, width=32, heads=2, layers=2, no_causal_mask=True, proj_bias=True)
    model = open_clip.CustomTextCLIP(embed_dim=16, vision_cfg=vision, text_cfg=text)
    model.visual.trunk.set_input_size((64, 64))  # timm's is made for 160 × 160
    model.visual.trunk.blocks = model.visual.trunk.blocks[:2]  # of six
    return model


def text_model() -> nn.Module:
    config = CLIPTextConfig(
        vocab_size=100, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=12, eos_token_id=99, bos_token_id=98, pad_token_id=0,
    )  # fmt: skip
    return CLIPTextModel(config)


SIZES: dict[str, Any] = dict(
    hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2, image_size=32, patch_size=8
)


def dinov3() -> nn.Module:
    """With rotary positions, registers, layer scale and a gated MLP."""
    return DINOv3ViTModel(DINOv3ViTConfig(**SIZES, num_register_tokens=2, use_gated_mlp=True, layerscale_value=0.5))


def videomae() -> nn.Module:
    """In the layout of transformers 4, over tubes of two frames."""
    return VideoMAEForVideoClassification(VideoMAEConfig(**SIZES, num_frames=4, num_labels=5))


def frames() -> dict[str, Any]:
    return {"pixel_values": torch.randn(2, 4, 3, 32, 32, generator=torch.Generator().manual_seed(3))}


def clip_model() -> nn.Module:
    text = dict(vocab_size=100, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2,
                max_position_embeddings=12, eos_token_id=99, bos_token_id=98, pad_token_id=0)  # fmt: skip
    scale = math.log(100)
    return CLIPModel(CLIPConfig(text_config=text, vision_config=SIZES, projection_dim=16, logit_scale_init_value=scale))


def unet(last: str = "CrossAttnUpBlock2D") -> nn.Module:
    return UNet2DConditionModel(
        sample_size=8, in_channels=4, out_channels=4, layers_per_block=1, block_out_channels=(16, 32), norm_num_groups=8,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", last),
        cross_attention_dim=24, attention_head_dim=4,
    )  # fmt: skip


class BehindBatchNorm(nn.Module):
    """A ViT behind a stem with BatchNorm, as hybrids have; it states its own anatomy."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 3, 3, padding=1, bias=False), nn.BatchNorm2d(3), nn.ReLU())
        self.vit = vit(depth=2)()

    def forward(self, x: Tensor) -> Tensor:
        return self.vit(self.stem(x))

    def peft_anatomy(self) -> Anatomy | None:
        inner = describe(self.vit)
        return None if inner is None else inner.under("vit")


def mmdit() -> nn.Module:
    return SD3Transformer2DModel(
        sample_size=8, patch_size=2, in_channels=4, out_channels=4, num_layers=2, attention_head_dim=8, num_attention_heads=4,
        caption_projection_dim=32, joint_attention_dim=24, pooled_projection_dim=16, pos_embed_max_size=8, qk_norm="rms_norm",
        dual_attention_layers=(0,),
    )  # fmt: skip


def flux() -> nn.Module:
    return FluxTransformer2DModel(
        in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2, joint_attention_dim=24,
        pooled_projection_dim=16, axes_dims_rope=(4, 4, 8), guidance_embeds=True,
    )  # fmt: skip


def pieces_with_text() -> dict[str, Any]:
    g = torch.Generator().manual_seed(3)
    places = torch.stack([torch.zeros(16), torch.arange(16) // 4, torch.arange(16) % 4], 1)
    return dict(
        hidden_states=torch.randn(2, 16, 16, generator=g), encoder_hidden_states=torch.randn(2, 5, 24, generator=g),
        pooled_projections=torch.randn(2, 16, generator=g), timestep=torch.tensor([0.3, 0.7]), guidance=torch.ones(2),
        txt_ids=torch.zeros(5, 3), img_ids=places,
    )  # fmt: skip


def noise_with_text() -> dict[str, Any]:
    g = torch.Generator().manual_seed(3)
    return dict(
        hidden_states=torch.randn(2, 4, 8, 8, generator=g), encoder_hidden_states=torch.randn(2, 5, 24, generator=g),
        pooled_projections=torch.randn(2, 16, generator=g), timestep=torch.tensor([3, 70]),
    )  # fmt: skip


def noise() -> dict[str, Any]:
    g = torch.Generator().manual_seed(3)
    return dict(
        sample=torch.randn(2, 4, 8, 8, generator=g),
        timestep=torch.tensor([3, 70]),
        encoder_hidden_states=torch.randn(2, 5, 24, generator=g),
    )


def condition() -> dict[str, Tensor]:
    """All that control methods read, for two pictures of latents as large as the picture."""
    g = torch.Generator().manual_seed(4)
    corner = torch.rand(2, 3, 2, generator=g) / 2
    return dict(
        picture=torch.rand(2, 3, 8, 8, generator=g), features=torch.randn(2, 5, 6, generator=g),
        null=torch.zeros(2, 5, 6), boxes=torch.cat([corner, corner + 0.3], -1),
        phrases=torch.randn(2, 3, 24, generator=g), present=torch.tensor([[1.0, 1, 0], [1, 0, 0]]),
        latents=torch.randn(2, 4, 8, 8, generator=g),
    )  # fmt: skip


def give_condition(model: nn.Module) -> None:
    controls = [control for _, control in controls_of(getattr(model, "_orig_mod", model))]
    if controls:
        given = condition()
        if any(type(module).__name__ == "ImageProjection" for module in model.modules()):
            given |= {key: given[key][:, 0] for key in ("features", "null")}
        set_condition(getattr(model, "_orig_mod", model), given)


def clip_batch() -> dict[str, Any]:
    return pictures("image")() | words("text")()


def both(features: tuple) -> Tensor:
    return torch.cat(features[:2])


def timm_model(name: str, size: int = 32, **changes: Any) -> Callable[[], nn.Module]:
    settings: dict[str, Any] = dict(img_size=size, embed_dim=48, depth=2, num_heads=3, num_classes=5) | changes
    return lambda: timm.create_model(name, **settings)


SWIN: dict[str, Any] = dict(
    img_size=56, embed_dim=16, depths=(1, 2), num_heads=(2, 4), num_classes=5, drop_path_rate=0.0
)

WORDS_OF_THE_LAST = tuple(
    f"peft.controlnet.branch.net.transformer_blocks.0.{path}.{kind}"
    for path in ("attn.add_q_proj", "attn.norm_added_q", "attn.to_add_out", "ff_context.net.0.proj", "ff_context.net.2")
    for kind in ("weight", "bias")
)
OF_THE_CONDITION = tuple(
    f"single_transformer_blocks.0.{path}.peft.omini_control.low_rank.{letter}"
    for path in ("attn.to_q", "proj_mlp", "proj_out")
    for letter in "AB"
)

MODELS: dict[str, Tiny] = {
    "vit": Tiny(vit(), pictures()),
    "deit": Tiny(vit("deit_tiny_distilled_patch16_224"), pictures()),
    "dinov2_registers": Tiny(vit("vit_small_patch14_reg4_dinov2", init_values=0.5), pictures()),
    "average_pooled": Tiny(vit(class_token=False, global_pool="avg", fc_norm=True), pictures()),
    "attention_pooled": Tiny(timm_model("vit_base_patch16_siglip_224", patch_size=8, depth=2), pictures()),
    "norms_behind": Tiny(timm_model("vit_base_patch16_rpn_224", patch_size=8), pictures()),
    "rms_norm": Tiny(timm_model("aimv2_large_patch14_224", 28), pictures(size=28)),
    "grouped_keys": Tiny(timm_model("vit_base_patch16_sapiens2", embed_dim=32, num_heads=2, num_kv_heads=1), pictures()),
    "batch_norm": Tiny(BehindBatchNorm, pictures()),
    "swin": Tiny(lambda: timm.create_model("swin_tiny_patch4_window7_224", **SWIN), pictures(size=56), tokens=False),
    "eva": Tiny(timm_model("eva02_base_patch14_224", patch_size=8), pictures()),
    "eva_fused": Tiny(timm_model("eva02_tiny_patch14_224", patch_size=8), pictures()),
    "clip_image": Tiny(lambda: clip()().visual, pictures("x"), exact=False),
    "clip": Tiny(clip(), clip_batch, both, tokens=False, exact=False),
    "custom_text_clip": Tiny(
        custom_text_clip, lambda: pictures("image", 64)() | words("text")(), both, tokens=False, exact=False
    ),
    "dinov3": Tiny(dinov3, pictures("pixel_values"), lambda y: y.pooler_output),
    "videomae": Tiny(videomae, frames, lambda y: y.logits),
    "clip_model": Tiny(
        clip_model, lambda: pictures("pixel_values")() | words("input_ids")(),
        lambda y: torch.cat((y.image_embeds, y.text_embeds)), tokens=False,
    ),
    "clip_text_model": Tiny(text_model, words("input_ids"), lambda y: y.pooler_output, tokens=False),
    "unet": Tiny(
        lambda: unet("UpBlock2D"), noise, lambda y: y.sample, tokens=False, prepare=give_condition,
        linears=("q", "k", "v", "proj", "cross_q", "cross_k", "cross_v", "cross_proj", "fc1", "fc2", "proj_io", "conv", "time",
                 "time_embed"),
    ),
    "mmdit": Tiny(
        mmdit, noise_with_text, lambda y: y.sample, prepare=give_condition, idle=WORDS_OF_THE_LAST,
        linears=("q", "k", "v", "proj", "fc1", "fc2", "context_q", "context_k", "context_v", "context_proj", "context_fc1",
                 "context_fc2", "modulation", "context_modulation", "patch_embed", "context_embed", "proj_io"),
    ),
}  # fmt: skip

FURTHER: dict[str, Tiny] = {
    "flux": Tiny(
        flux, pieces_with_text, lambda y: y.sample, tokens=False, prepare=give_condition, idle=OF_THE_CONDITION
    )
}
"""For methods of one model alone (`tests/test_contract.py`)."""
