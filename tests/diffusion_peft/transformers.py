"""Whole pipelines of diffusion transformers, tiny and random, with the traits of the real ones: shifted latents, a mean and a
deviation a channel, 16 channels, packing, guidance that is told, two CLIPs beside T5."""

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import diffusers
import torch
from tokenizers.pre_tokenizers import ByteLevel
from torch import nn
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    Gemma2Config,
    Gemma2Model,
    GemmaTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2TokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3Model,
    T5Config,
    T5EncoderModel,
    T5TokenizerFast,
    UMT5Config,
    UMT5EncoderModel,
)

from tests.diffusion_peft.pipelines import _TEXT, livelier, tokenizer

_CHAT = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
_LETTERS = [chr(code) for code in range(33, 127)]


@cache
def t5_words() -> Any:
    return T5TokenizerFast(
        [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", -9.0), ("▁", -2.0), *((c, -3.0) for c in _LETTERS)]
    )


@cache
def gemma_words() -> Any:
    names = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "▁", *_LETTERS, *(f"<0x{byte:02X}>" for byte in range(256))]
    return GemmaTokenizerFast({name: number for number, name in enumerate(names)}, [])


@cache
def qwen_words() -> Any:
    names = [*sorted(ByteLevel.alphabet()), "<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    words = Qwen2TokenizerFast({name: number for number, name in enumerate(names)}, [])
    words.chat_template = _CHAT
    return words


def clip(cls: type, width: int) -> nn.Module:
    return livelier(cls(CLIPTextConfig(hidden_size=width, projection_dim=width, **_TEXT)))


def t5(width: int = 32) -> nn.Module:
    return livelier(T5EncoderModel(T5Config(vocab_size=256, d_model=width, d_kv=8, d_ff=32, num_layers=1, num_heads=4)))


_LANGUAGE: dict[str, Any] = dict(
    hidden_size=32, intermediate_size=32, num_attention_heads=2, num_key_value_heads=1, head_dim=16
)


def gemma() -> nn.Module:
    return livelier(Gemma2Model(Gemma2Config(vocab_size=512, num_hidden_layers=2, **_LANGUAGE)))


def kl(channels: int = 16, cls: Any = diffusers.AutoencoderKL, levels: int = 1, **more: Any) -> nn.Module:
    vae = cls(
        block_out_channels=(8,) * levels, down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        latent_channels=channels, norm_num_groups=4, sample_size=8, use_quant_conv=False, use_post_quant_conv=False, **more,
    )  # fmt: skip
    return livelier(vae)


def flow(**more: Any) -> Any:
    return diffusers.FlowMatchEulerDiscreteScheduler(**more)


def sd3() -> Any:
    transformer = diffusers.SD3Transformer2DModel(
        sample_size=8, patch_size=2, in_channels=16, num_layers=2, attention_head_dim=8, num_attention_heads=4,
        caption_projection_dim=32, joint_attention_dim=48, pooled_projection_dim=40, out_channels=16, pos_embed_max_size=16,
        dual_attention_layers=(0,), qk_norm="rms_norm",
    )  # fmt: skip
    return diffusers.StableDiffusion3Pipeline(
        transformer=livelier(transformer), vae=kl(scaling_factor=1.5305, shift_factor=0.0609), scheduler=flow(shift=3.0),
        text_encoder=clip(CLIPTextModelWithProjection, 24), text_encoder_2=clip(CLIPTextModelWithProjection, 16),
        text_encoder_3=t5(48), tokenizer=tokenizer(), tokenizer_2=tokenizer(), tokenizer_3=t5_words(),
    )  # fmt: skip


def flux(distilled: bool = True) -> Any:
    transformer = diffusers.FluxTransformer2DModel(
        patch_size=1, in_channels=64, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=32, pooled_projection_dim=24, axes_dims_rope=(4, 4, 8), guidance_embeds=distilled,
    )  # fmt: skip
    return diffusers.FluxPipeline(
        transformer=livelier(transformer), vae=kl(scaling_factor=0.3611, shift_factor=0.1159),
        scheduler=flow(shift=3.0, use_dynamic_shifting=True), text_encoder=clip(CLIPTextModel, 24), text_encoder_2=t5(),
        tokenizer=tokenizer(), tokenizer_2=t5_words(),
    )  # fmt: skip


def flux2() -> Any:
    transformer = diffusers.Flux2Transformer2DModel(
        patch_size=1, in_channels=64, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=96, timestep_guidance_channels=256, axes_dims_rope=(4, 4, 4, 4), guidance_embeds=False,
    )  # fmt: skip
    vae: Any = kl(cls=diffusers.AutoencoderKLFlux2)
    vae.bn.running_mean.normal_()
    vae.bn.running_var.uniform_(0.5, 2)
    return diffusers.Flux2KleinPipeline(
        transformer=livelier(transformer), vae=vae, scheduler=flow(use_dynamic_shifting=True), tokenizer=qwen_words(),
        text_encoder=livelier(Qwen3ForCausalLM(Qwen3Config(vocab_size=260, num_hidden_layers=27, **_LANGUAGE))),
    )  # fmt: skip


def z_image() -> Any:
    transformer = diffusers.ZImageTransformer2DModel(
        all_patch_size=(2,), all_f_patch_size=(1,), in_channels=16, dim=32, n_layers=1, n_refiner_layers=1, n_heads=2,
        n_kv_heads=2, qk_norm=True, cap_feat_dim=32, rope_theta=256.0, t_scale=1000.0, axes_dims=[8, 4, 4],
        axes_lens=[1024, 64, 64],
    )  # fmt: skip
    return diffusers.ZImagePipeline(
        transformer=livelier(transformer), vae=kl(scaling_factor=0.3611, shift_factor=0.1159), scheduler=flow(shift=3.0),
        text_encoder=livelier(Qwen3Model(Qwen3Config(vocab_size=260, num_hidden_layers=2, **_LANGUAGE))),
        tokenizer=qwen_words(),
    )  # fmt: skip


def qwen_image() -> Any:
    transformer = diffusers.QwenImageTransformer2DModel(
        patch_size=2, in_channels=64, out_channels=16, num_layers=2, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=32, guidance_embeds=False, axes_dims_rope=(8, 4, 4),
    )  # fmt: skip
    vae = diffusers.AutoencoderKLQwenImage(
        base_dim=8, z_dim=16, dim_mult=[1, 1], num_res_blocks=1, temperal_downsample=[False],
        latents_mean=[0.1 * n for n in range(16)], latents_std=[1 + 0.1 * n for n in range(16)],
    )  # fmt: skip
    config = Qwen2_5_VLConfig(
        text_config=dict(vocab_size=260, num_hidden_layers=1, rope_scaling={"type": "mrope", "mrope_section": [2, 3, 3]},
                         **{k: v for k, v in _LANGUAGE.items() if k != "head_dim"}),
        vision_config=dict(depth=1, hidden_size=16, intermediate_size=16, num_heads=2, out_hidden_size=32),
    )  # fmt: skip
    return diffusers.QwenImagePipeline(
        transformer=livelier(transformer), vae=livelier(vae), tokenizer=qwen_words(),
        scheduler=flow(use_dynamic_shifting=True, base_shift=0.5, max_shift=0.9, shift_terminal=0.02),
        text_encoder=livelier(Qwen2_5_VLForConditionalGeneration(config)),
    )  # fmt: skip


def sana() -> Any:
    transformer = diffusers.SanaTransformer2DModel(
        patch_size=1, in_channels=4, out_channels=4, num_layers=1, attention_head_dim=8, num_attention_heads=2,
        num_cross_attention_heads=2, cross_attention_head_dim=8, cross_attention_dim=16, caption_channels=32, sample_size=16,
    )  # fmt: skip
    vae = diffusers.AutoencoderDC(
        in_channels=3, latent_channels=4, attention_head_dim=2, encoder_block_types=("ResBlock", "EfficientViTBlock"),
        decoder_block_types=("ResBlock", "EfficientViTBlock"), encoder_block_out_channels=(8, 8),
        decoder_block_out_channels=(8, 8), encoder_layers_per_block=(1, 1), decoder_layers_per_block=(1, 1),
        encoder_qkv_multiscales=((), (5,)), decoder_qkv_multiscales=((), (5,)), downsample_block_type="conv",
        upsample_block_type="interpolate", decoder_norm_types="rms_norm", decoder_act_fns="silu", scaling_factor=0.41407,
    )  # fmt: skip
    return diffusers.SanaPipeline(
        transformer=livelier(transformer), vae=livelier(vae), text_encoder=gemma(), tokenizer=gemma_words(),
        scheduler=diffusers.DPMSolverMultistepScheduler(
            use_flow_sigmas=True, prediction_type="flow_prediction", flow_shift=3.0
        ),
    )  # fmt: skip


def pixart() -> Any:
    transformer = diffusers.PixArtTransformer2DModel(
        sample_size=8, num_layers=1, patch_size=2, attention_head_dim=8, num_attention_heads=2, in_channels=4,
        cross_attention_dim=16, out_channels=8, caption_channels=32, use_additional_conditions=False,
        norm_type="ada_norm_single", norm_elementwise_affine=False, norm_eps=1e-6,
    )  # fmt: skip
    return diffusers.PixArtSigmaPipeline(
        transformer=livelier(transformer), vae=kl(4, scaling_factor=0.13025), text_encoder=t5(), tokenizer=t5_words(),
        scheduler=diffusers.DPMSolverMultistepScheduler(),
    )  # fmt: skip


def lumina2() -> Any:
    transformer = diffusers.Lumina2Transformer2DModel(
        sample_size=2, patch_size=2, in_channels=16, hidden_size=24, num_layers=1, num_refiner_layers=1, num_attention_heads=3,
        num_kv_heads=1, multiple_of=2, axes_dim_rope=(4, 2, 2), axes_lens=(300, 128, 128), cap_feat_dim=32,
    )  # fmt: skip
    pipeline = diffusers.Lumina2Pipeline(
        transformer=livelier(transformer), scheduler=flow(shift=6.0),
        vae=kl(levels=4, scaling_factor=0.3611, shift_factor=0.1159),
        text_encoder=gemma(), tokenizer=gemma_words(),
    )  # fmt: skip
    return pipeline


def wan() -> Any:
    transformer = diffusers.WanTransformer3DModel(
        patch_size=(1, 2, 2), num_attention_heads=2, attention_head_dim=12, in_channels=4, out_channels=4, text_dim=32,
        freq_dim=32, ffn_dim=32, num_layers=2, cross_attn_norm=True, qk_norm="rms_norm_across_heads", rope_max_seq_len=32,
    )  # fmt: skip
    vae = diffusers.AutoencoderKLWan(
        base_dim=8, z_dim=4, dim_mult=[1, 1], num_res_blocks=1, temperal_downsample=[True], scale_factor_temporal=2,
        scale_factor_spatial=2, latents_mean=[0.1 * n for n in range(4)], latents_std=[1 + 0.1 * n for n in range(4)],
    )  # fmt: skip
    config = UMT5Config(vocab_size=256, d_model=32, d_kv=8, d_ff=32, num_layers=1, num_heads=4)
    return diffusers.WanPipeline(
        transformer=livelier(transformer), vae=livelier(vae), tokenizer=t5_words(), scheduler=flow(shift=3.0),
        text_encoder=livelier(UMT5EncoderModel(config)),
    )  # fmt: skip


MAKERS: dict[str, Callable[[], Any]] = {
    "sd3": sd3, "flux": flux, "flux2": flux2, "z_image": z_image, "qwen_image": qwen_image, "sana": sana, "pixart": pixart,
    "lumina2": lumina2, "wan": wan,
}  # fmt: skip


def pipeline(kind: str) -> Any:
    """The same at each call."""
    torch.manual_seed(0)
    made = MAKERS[kind]()
    made.set_progress_bar_config(disable=True)
    return made


def edit(file: Path, **changes: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text(encoding="utf-8")) | changes), encoding="utf-8")
