"""Sana: a flow over the latents of an autoencoder that shrinks by 32 and is drawn from nothing, under Gemma's words."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from diffusion_peft.base.families import Family, with_masks
from diffusion_peft.base.prompts import Prompt

if TYPE_CHECKING:
    from diffusion_peft.base.bases import Base


class Sana(Family):
    kind, title = "sana", "Sana"
    pipelines = ("SanaPipeline",)
    classes = {
        "transformer": ("SanaTransformer2DModel",), "vae": ("AutoencoderDC",),
        "text_encoder": ("Gemma2Model",), "tokenizer": ("GemmaTokenizer", "GemmaTokenizerFast"),
    }  # fmt: skip
    shapes = {"transformer": None, "vae": None}
    fixed = {"transformer": ("guidance_embeds", "guidance_embeds_scale")}
    reads = (("tokenizer", 300),)
    usual_guidance = 4.5
    marks = r"conv_inverted|conv_point|conv_depth"

    def shrinks(self, base: Base) -> int:
        return 2 ** (len(base.config("vae")["encoder_block_out_channels"]) - 1)

    def least_side(self, base: Base) -> int:
        return max(32, super().least_side(base))  # which its pipeline asks for

    def encode(self, vae: Any, pixels: Tensor) -> tuple[Tensor, Tensor]:
        latent = vae.encode(pixels).latent
        return latent, torch.full_like(latent, -torch.inf)

    def said(self, pipeline: Any, text: str, device: torch.device) -> Prompt:
        """Behind the instruction that the stock pipeline puts before a prompt."""
        instruction = inspect.signature(type(pipeline).__call__).parameters["complex_human_instruction"].default
        return _encoded(pipeline, text, device, instruction)

    def against(
        self, base: Base, text: str, device: torch.device, clip_skip: int = 0, encoders: Sequence[Any] | None = None
    ) -> Prompt:
        return _encoded(base.text_pipeline(), text, device, None)

    def predict(
        self, model: nn.Module, x: Tensor, time: Tensor, guidance: float | None, hidden: Tensor, **words: Tensor
    ) -> Tensor:
        dtype: Any = model.dtype
        return model(
            hidden_states=x.to(dtype), encoder_hidden_states=hidden.to(dtype),
            encoder_attention_mask=words["mask"], timestep=time * 1000, return_dict=False,
        )[0]  # fmt: skip

    def called(self, base: Base, wanted: Prompt, against: Prompt, guidance: float) -> dict[str, Any]:
        given = super().called(base, wanted, against, guidance) | with_masks(wanted, against)
        return given | {"use_resolution_binning": False}


def _encoded(pipeline: Any, text: str, device: torch.device, instruction: list[str] | None) -> Prompt:
    hidden, mask, _, _ = pipeline.encode_prompt(
        text, False, device=device, max_sequence_length=300, complex_human_instruction=instruction
    )
    return Prompt(hidden, None, mask)
