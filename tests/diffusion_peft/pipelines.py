"""Whole pipelines with the shapes of Stable Diffusion 1.5 and XL, tiny and random, made without a network."""

import json
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

_TEXT: dict[str, Any] = dict(vocab_size=514, intermediate_size=40, num_hidden_layers=2, num_attention_heads=4,
                             max_position_embeddings=77, bos_token_id=512, eos_token_id=513, pad_token_id=513)  # fmt: skip


@cache
def tokenizer() -> CLIPTokenizer:
    """One token a character."""
    characters = [chr(code) for code in range(33, 127)]
    words = characters + [f"{character}</w>" for character in characters]
    words += [f"unused{number}" for number in range(len(words), 512)]  # ids without a gap, as real vocabularies have
    vocabulary = {word: index for index, word in enumerate(words)} | {"<|startoftext|>": 512, "<|endoftext|>": 513}
    folder = Path(tempfile.mkdtemp())
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    return CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=77)


def livelier(model: nn.Module) -> nn.Module:
    """Zero-initialised and tiny weights made to matter, so that a change of any layer is seen in the picture."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * (0.1 if parameter.dim() == 1 else 0.03))
    return model.eval()


def text_model(cls: type, width: int) -> nn.Module:
    return livelier(cls(CLIPTextConfig(hidden_size=width, projection_dim=width, **_TEXT)))


def stable_diffusion(name: str) -> Any:
    """ "sd15" or "sdxl", the same at each call."""
    torch.manual_seed(0)
    shape: dict[str, Any] = dict(
        sample_size=8, in_channels=4, out_channels=4, layers_per_block=2, block_out_channels=(16, 32), norm_num_groups=8,
        attention_head_dim=4,
    )  # fmt: skip
    vae = AutoencoderKL(
        block_out_channels=(8,), down_block_types=("DownEncoderBlock2D",), up_block_types=("UpDecoderBlock2D",),
        latent_channels=4, norm_num_groups=4, sample_size=8,
    )  # fmt: skip
    parts: dict[str, Any] = dict(
        vae=livelier(vae), tokenizer=tokenizer(), scheduler=DDIMScheduler(steps_offset=1, clip_sample=False)
    )
    parts["text_encoder"] = text_model(CLIPTextModel, 24)
    if name == "sd15":
        shape |= dict(down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), cross_attention_dim=24,
                      up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"))  # fmt: skip
        pipeline: Any = StableDiffusionPipeline(
            **parts, unet=livelier(UNet2DConditionModel(**shape)), safety_checker=None, feature_extractor=None,
            requires_safety_checker=False,
        )  # fmt: skip
    else:
        shape |= dict(down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), cross_attention_dim=24 + 16,
                      up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"), transformer_layers_per_block=(1, 2),
                      use_linear_projection=True, addition_embed_type="text_time", addition_time_embed_dim=8,
                      projection_class_embeddings_input_dim=6 * 8 + 16)  # fmt: skip
        parts |= dict(text_encoder_2=text_model(CLIPTextModelWithProjection, 16), tokenizer_2=tokenizer())
        pipeline = StableDiffusionXLPipeline(
            **parts, unet=livelier(UNet2DConditionModel(**shape)), add_watermarker=False, feature_extractor=None
        )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def texts(pipeline: Any) -> list[nn.Module]:
    return [model for name in ("text_encoder", "text_encoder_2") if (model := getattr(pipeline, name, None))]


@torch.no_grad()
def picture(pipeline: Any) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    size = dict(height=8, width=8) if hasattr(pipeline, "text_encoder_2") else {}
    result = pipeline("a cat", num_inference_steps=2, guidance_scale=4.0, generator=generator, output_type="pt", **size)
    return result.images


def train(model: nn.Module, seed: int = 5) -> None:
    """What training would do, at once: every trainable moves."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for _, parameter in sorted((k, p) for k, p in model.named_parameters() if p.requires_grad):
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
