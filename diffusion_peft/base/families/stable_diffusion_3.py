"""Stable Diffusion 3 and 3.5: a flow under the words of two CLIP text encoders and of T5, which a folder may go without."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from diffusion_peft.base.families import AUTOENCODER, CLIP, T5, Family
from diffusion_peft.base.prompts import Prompt

if TYPE_CHECKING:
    from diffusion_peft.base.bases import Base


class StableDiffusion3(Family):
    kind, title = "sd3", "Stable Diffusion 3"
    pipelines = ("StableDiffusion3Pipeline",)
    texts = ("text_encoder", "text_encoder_2", "text_encoder_3")
    optional = ("text_encoder_3",)
    classes = {
        "transformer": ("SD3Transformer2DModel",), "vae": ("AutoencoderKL",), "text_encoder": CLIP[0][1:],
        "text_encoder_2": CLIP[0][1:], "text_encoder_3": T5[0], "tokenizer": CLIP[1], "tokenizer_2": CLIP[1],
        "tokenizer_3": T5[1],
    }  # fmt: skip
    shapes = {"transformer": None, "vae": (*AUTOENCODER, "shift_factor")}
    reads = (("tokenizer_3", 256),)
    usual_guidance = 7.0

    def said(self, pipeline: Any, text: str, device: torch.device) -> Prompt:
        hidden, _, pooled, _ = pipeline.encode_prompt(
            text, text, text, device=device, do_classifier_free_guidance=False, max_sequence_length=256
        )
        return Prompt(hidden, pooled)

    def predict(
        self, model: nn.Module, x: Tensor, time: Tensor, guidance: float | None, hidden: Tensor, **words: Tensor
    ) -> Tensor:
        dtype: Any = model.dtype
        return model(
            hidden_states=x.to(dtype), timestep=time * 1000, encoder_hidden_states=hidden.to(dtype),
            pooled_projections=words["pooled"].to(dtype), return_dict=False,
        )[0]  # fmt: skip

    def called(self, base: Base, wanted: Prompt, against: Prompt, guidance: float) -> dict[str, Any]:
        return {
            "prompt_embeds": wanted.hidden, "pooled_prompt_embeds": wanted.pooled, "guidance_scale": guidance,
            "negative_prompt_embeds": against.hidden, "negative_pooled_prompt_embeds": against.pooled,
        }  # fmt: skip
