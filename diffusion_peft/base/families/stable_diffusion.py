"""Stable Diffusion 1.x, 2.x and XL: UNets of a discrete noise schedule under the words of one CLIP text encoder, or of two."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from diffusion_peft.base.families import AUTOENCODER, CLIP, Family
from diffusion_peft.base.prompts import Prompt
from diffusion_peft.base.texts import encode, ids_of
from peft_core.registry import facts_of, make_method, method_files

if TYPE_CHECKING:
    from diffusion_peft.base.bases import Base
    from peft_core.method import Method

_UNET = (
    "sample_size in_channels out_channels down_block_types up_block_types block_out_channels layers_per_block norm_eps "
    "norm_num_groups cross_attention_dim transformer_layers_per_block attention_head_dim num_attention_heads act_fn "
    "use_linear_projection upcast_attention addition_embed_type addition_time_embed_dim only_cross_attention dropout "
    "projection_class_embeddings_input_dim mid_block_scale_factor downsample_padding flip_sin_to_cos freq_shift "
    "reverse_transformer_layers_per_block mid_block_only_cross_attention addition_embed_type_num_heads"
).split()


class StableDiffusion(Family):
    kind, title = "sd1", "Stable Diffusion 1.x"
    editor = "StableDiffusionInstructPix2PixPipeline"
    usual_drop = 0.05
    pipelines = ("StableDiffusionPipeline", editor)
    denoiser = "unet"
    classes = {
        "unet": ("UNet2DConditionModel",), "vae": ("AutoencoderKL",), "text_encoder": CLIP[0], "tokenizer": CLIP[1],
    }  # fmt: skip
    shapes = {"unet": _UNET, "vae": AUTOENCODER}
    flows = False
    trains_texts = True
    reads = (("tokenizer", None),)
    usual_guidance = 7.5
    marks = r"down_blocks|up_blocks|mid_block|input_blocks|output_blocks|middle_block"

    def claims(self, base: Base) -> bool:
        return not StableDiffusion2.is_second(base)

    def is_distilled(self, base: Base) -> bool:
        return False

    def latent_channels(self, base: Base) -> int:
        return super().latent_channels(base) * (2 if base.edits else 1)

    def must_have_source(self, base: Base) -> bool:
        return base.edits

    def widen(self, base: Base, denoiser: Any) -> None:
        """conv_in reads the source behind the noised latents, with zeros at first (Brooks et al., InstructPix2Pix, CVPR 2023)."""
        old, own = denoiser.conv_in, base.config("vae")["latent_channels"]
        if old.in_channels > own:
            return
        wide = nn.Conv2d(2 * own, old.out_channels, old.kernel_size, old.stride, old.padding, device="meta")
        with torch.no_grad():
            wide.weight = nn.Parameter(torch.cat([old.weight, torch.zeros_like(old.weight)], 1))
        wide.bias = old.bias
        denoiser.conv_in = wide
        denoiser.register_to_config(in_channels=2 * own)

    def besides(self, base: Base, denoiser: Any) -> Sequence[Method]:
        own = base.config("unet")["in_channels"]
        if denoiser.conv_in.in_channels == own or denoiser.conv_in.weight.requires_grad:
            return []
        name = next(each for each in method_files() if facts_of(each).get("completes") == "source")
        return [make_method(name, first=own)]

    def source(self, base: Base, mean: Tensor) -> Tensor:
        """Not scaled, as the authors and diffusers have it."""
        return mean

    def edited(self, source: Tensor | None, guidance: float | None, height: int, width: int) -> dict[str, Any]:
        return {"image": source, "image_guidance_scale": 1.5 if guidance is None else guidance}

    def least_side(self, base: Base) -> int:
        return base.shrinks * 2 ** (len(base.config("unet")["block_out_channels"]) - 1)

    def resolution(self, base: Base) -> int:
        size = base.config("unet").get("sample_size") or 64
        return int(size if isinstance(size, int) else size[0]) * base.shrinks

    def prompt(
        self, base: Base, text: str, device: torch.device, clip_skip: int = 0, encoders: Sequence[Any] | None = None
    ) -> Prompt:
        models = [each.to(device) for each in base.text_encoders] if encoders is None else list(encoders)
        ids = [each.to(next(models[0].parameters()).device) for each in ids_of(base, [text])]
        return Prompt(*encode(models, ids, clip_skip))

    def predict(
        self, model: nn.Module, x: Tensor, time: Tensor, guidance: float | None, hidden: Tensor, **words: Tensor
    ) -> Tensor:
        dtype: Any = model.dtype
        x = torch.cat([x, words["source"]], 1) if "source" in words else x
        added = (
            {"time_ids": words["sizes"].to(dtype), "text_embeds": words["pooled"].to(dtype)}
            if "pooled" in words
            else None
        )
        return model(x.to(dtype), time, hidden.to(dtype), added_cond_kwargs=added).sample


class StableDiffusion2(StableDiffusion):
    kind, title = "sd2", "Stable Diffusion 2.x"

    def claims(self, base: Base) -> bool:
        return self.is_second(base)

    @staticmethod
    def is_second(base: Base) -> bool:
        open_clip = base.config("text_encoder").get("hidden_act") == "gelu"  # ViT-H of OpenCLIP; ViT-L has quick_gelu
        return open_clip or base.config("unet")["cross_attention_dim"] == 1024


class StableDiffusionXL(StableDiffusion):
    kind, title = "sdxl", "Stable Diffusion XL"
    editor = "StableDiffusionXLInstructPix2PixPipeline"
    pipelines = ("StableDiffusionXLPipeline", editor)
    texts = ("text_encoder", "text_encoder_2")
    classes = {**StableDiffusion.classes, "text_encoder_2": CLIP[0][1:], "tokenizer_2": CLIP[1]}
    reads = (("tokenizer", None), ("tokenizer_2", None))

    def claims(self, base: Base) -> bool:
        return True

    def against(
        self, base: Base, text: str, device: torch.device, clip_skip: int = 0, encoders: Sequence[Any] | None = None
    ) -> Prompt:
        """Zeros for an empty one where the pipeline says so."""
        prompt = self.prompt(base, text, device, clip_skip, encoders)
        if text or not base.index.get("force_zeros_for_empty_prompt", True):
            return prompt
        assert prompt.pooled is not None
        return Prompt(torch.zeros_like(prompt.hidden), torch.zeros_like(prompt.pooled))
