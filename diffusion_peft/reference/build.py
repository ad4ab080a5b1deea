"""The parts of the reference pipeline: stock diffusers and transformers classes, small."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from peft_data.world.captioned import words
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from .tokens import LENGTH, write_tokenizer


@dataclass(frozen=True)
class Shape:
    """Widths of the three networks.

    Attributes:
        vae: channels at 64, 32 and 16 pixels.
        unet: channels at 16, 8 and 4 latent pixels.
        text: width of the text encoder.
        text_layers: its depth.
        groups: channels are normalised in that many groups.
    """

    vae: tuple[int, int, int] = (16, 32, 64)
    unet: tuple[int, int, int] = (64, 96, 128)
    text: int = 128
    text_layers: int = 3
    groups: int = 8


FULL = Shape()
TINY = Shape((8, 8, 8), (8, 8, 8), 8, 1, 4)
"""For tests."""


def new_vae(shape: Shape) -> AutoencoderKL:
    """64 px pictures to 4 × 16 × 16 latents and back; no attention, so pictures of any size (divisible by 4) do."""
    levels: dict[str, Any] = {  # typed as of one level
        "block_out_channels": shape.vae,
        "down_block_types": ("DownEncoderBlock2D",) * 3,
        "up_block_types": ("UpDecoderBlock2D",) * 3,
    }
    return AutoencoderKL(
        **levels, layers_per_block=1, latent_channels=4, norm_num_groups=shape.groups, sample_size=64,
        mid_block_add_attention=False, scaling_factor=1.0,
    )  # fmt: skip


def new_unet(shape: Shape) -> UNet2DConditionModel:
    """Self and cross attention at 16 × 16, 8 × 8 and in the middle; the 4 × 4 level has convolutions only."""
    return UNet2DConditionModel(
        sample_size=16, in_channels=4, out_channels=4, block_out_channels=shape.unet, layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"), attention_head_dim=2,
        cross_attention_dim=shape.text, norm_num_groups=2 * shape.groups if shape.unet[0] >= 32 else shape.groups,
    )  # fmt: skip


def new_text_encoder(shape: Shape, tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """A causal transformer over 77 tokens."""
    ends: dict[str, Any] = {key: getattr(tokenizer, key) for key in ("bos_token_id", "eos_token_id", "pad_token_id")}
    config = CLIPTextConfig(
        vocab_size=len(tokenizer), hidden_size=shape.text, intermediate_size=4 * shape.text, projection_dim=shape.text,
        num_hidden_layers=shape.text_layers, num_attention_heads=max(shape.text // 32, 2),
        max_position_embeddings=LENGTH, **ends,
    )  # fmt: skip
    return CLIPTextModel(config)


def new_tokenizer(folder: Path) -> CLIPTokenizer:
    """The captions' tokenizer, written to and read from `folder`."""
    write_tokenizer(words(), folder)
    return CLIPTokenizer.from_pretrained(str(folder))


def new_scheduler() -> DDIMScheduler:
    """Stable Diffusion 1's noise schedule, the noise is predicted."""
    return DDIMScheduler(
        num_train_timesteps=1000, beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear",
        clip_sample=False, set_alpha_to_one=False, steps_offset=1, prediction_type="epsilon",
    )  # fmt: skip


def write_pipeline(
    vae: AutoencoderKL, unet: UNet2DConditionModel, text_encoder: CLIPTextModel, tokenizer: CLIPTokenizer, folder: Path
) -> None:
    """Writes a `StableDiffusionPipeline` folder in float16, whole or not at all; the models are halved in place."""
    rest: dict[str, Any] = {"scheduler": new_scheduler(), "safety_checker": None, "feature_extractor": None}
    pipeline = StableDiffusionPipeline(
        vae=vae.half(), unet=unet.half(), text_encoder=text_encoder.half(), tokenizer=tokenizer, **rest,
        requires_safety_checker=False,
    )  # fmt: skip
    whole, old = folder.with_name(folder.name + ".part"), folder.with_name(folder.name + ".old")
    for path in (whole, old):
        shutil.rmtree(path, ignore_errors=True)
    pipeline.save_pretrained(str(whole), safe_serialization=True)
    shutil.rmtree(whole / "tokenizer")
    write_tokenizer(words(), whole / "tokenizer")
    config = whole / "text_encoder" / "config.json"  # transformers takes the dtype from it, diffusers float32
    config.write_text(config.read_text(encoding="utf-8").replace('"float16"', '"float32"'), encoding="utf-8")
    for path in whole.rglob("*.safetensors"):
        path.chmod(0o644)
    if folder.exists():
        folder.rename(old)
    whole.rename(folder)
    shutil.rmtree(old, ignore_errors=True)
