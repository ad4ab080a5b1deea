"""Lumina-Image 2.0: a flow whose time runs from 0, noise, to 1 and whose prediction points the other way, under Gemma's words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from diffusion_peft.base.families import AUTOENCODER, Family, with_masks
from diffusion_peft.base.prompts import Prompt

if TYPE_CHECKING:
    from diffusion_peft.base.bases import Base


class Lumina2(Family):
    kind, title = "lumina2", "Lumina-Image 2.0"
    pipelines = ("Lumina2Pipeline", "Lumina2Text2ImgPipeline")
    classes = {
        "transformer": ("Lumina2Transformer2DModel",), "vae": ("AutoencoderKL",), "text_encoder": ("Gemma2Model",),
        "tokenizer": ("GemmaTokenizer", "GemmaTokenizerFast"),
    }  # fmt: skip
    shapes = {"transformer": None, "vae": (*AUTOENCODER, "shift_factor")}
    reads = (("tokenizer", 256),)
    usual_guidance = 4.0
    marks = r"feed_forward\.linear_[123]"

    def least_side(self, base: Base) -> int:
        return max(16, super().least_side(base))  # which its pipeline asks for

    def said(self, pipeline: Any, text: str, device: torch.device) -> Prompt:
        """Behind the pipeline's system prompt."""
        hidden, mask, _, _ = pipeline.encode_prompt(text, False, device=device)
        return Prompt(hidden, None, mask)

    def against(
        self, base: Base, text: str, device: torch.device, clip_skip: int = 0, encoders: Sequence[Any] | None = None
    ) -> Prompt:
        """As the stock pipeline has it, without the system prompt."""
        hidden, mask = base.text_pipeline()._get_gemma_prompt_embeds(text, device)
        return Prompt(hidden, None, mask)

    def predict(
        self, model: nn.Module, x: Tensor, time: Tensor, guidance: float | None, hidden: Tensor, **words: Tensor
    ) -> Tensor:
        dtype: Any = model.dtype
        return -model(
            hidden_states=x.to(dtype), timestep=1 - time, encoder_hidden_states=hidden.to(dtype),
            encoder_attention_mask=words["mask"].bool(), return_dict=False,
        )[0]  # fmt: skip

    def called(self, base: Base, wanted: Prompt, against: Prompt, guidance: float) -> dict[str, Any]:
        return super().called(base, wanted, against, guidance) | with_masks(wanted, against)
