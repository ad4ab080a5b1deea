"""Z-Image: a flow whose time runs from 0, noise, to 1 and whose prediction points the other way, under Qwen 3's words without
their padding."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from diffusion_peft.base.families import AUTOENCODER, Family, masked
from diffusion_peft.base.prompts import Prompt

if TYPE_CHECKING:
    from diffusion_peft.base.bases import Base


class ZImage(Family):
    kind, title = "z_image", "Z-Image"
    pipelines = ("ZImagePipeline",)
    classes = {
        "transformer": ("ZImageTransformer2DModel",), "vae": ("AutoencoderKL",),
        "text_encoder": ("Qwen3Model", "Qwen3ForCausalLM"), "tokenizer": ("Qwen2Tokenizer", "Qwen2TokenizerFast"),
    }  # fmt: skip
    shapes = {"transformer": None, "vae": (*AUTOENCODER, "shift_factor")}
    fixed = {"transformer": ("all_patch_size", "all_f_patch_size", "siglip_feat_dim")}
    reads = (("tokenizer", 512),)
    usual_guidance = 5.0
    marks = r"noise_refiner|layers[._]\d+[._]attention[._]to_"

    def patch(self, base: Base) -> int:
        return 2

    def encode(self, vae: Any, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """The posterior's mode."""
        mean = vae.encode(pixels).latent_dist.mode()
        return mean, torch.full_like(mean, -torch.inf)

    def said(self, pipeline: Any, text: str, device: torch.device) -> Prompt:
        (words,), _ = pipeline.encode_prompt([text], device, do_classifier_free_guidance=False)
        return Prompt(words[None], None)

    def predict(
        self, model: nn.Module, x: Tensor, time: Tensor, guidance: float | None, hidden: Tensor, **words: Tensor
    ) -> Tensor:
        dtype: Any = model.dtype
        lists = masked(Prompt(hidden.to(dtype), None, words.get("mask")))
        said = model(list(x.to(dtype)[:, :, None]), 1 - time, lists, return_dict=False)[0]
        return -torch.stack(said)[:, :, 0]

    def called(self, base: Base, wanted: Prompt, against: Prompt, guidance: float) -> dict[str, Any]:
        return {
            "prompt_embeds": masked(wanted), "negative_prompt_embeds": masked(against), "guidance_scale": guidance,
        }  # fmt: skip
