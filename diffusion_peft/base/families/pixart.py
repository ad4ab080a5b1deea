"""PixArt-Σ: a transformer of a discrete noise schedule that says ε, and a variance that is not trained, under T5's words."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from diffusion_peft.base.families import AUTOENCODER, T5, Family, with_masks
from diffusion_peft.base.prompts import Prompt
from peft_core.errors import PeftError

if TYPE_CHECKING:
    from diffusion_peft.base.bases import Base


class PixArt(Family):
    kind, title = "pixart", "PixArt-Σ"
    pipelines = ("PixArtSigmaPipeline",)
    classes = {
        "transformer": ("PixArtTransformer2DModel",), "vae": ("AutoencoderKL",), "text_encoder": T5[0], "tokenizer": T5[1],
    }  # fmt: skip
    shapes = {"transformer": None, "vae": AUTOENCODER}
    flows = False
    reads = (("tokenizer", 300),)
    usual_guidance = 4.5
    marks = r"adaln_single|(?<!attentions\.\d\.)transformer_blocks\.\d+\.attn1\."

    def check(self, base: Base) -> None:
        super().check(base)
        config = base.config("transformer")
        told = config["use_additional_conditions"]
        if told or told is None and config["sample_size"] == 128:
            raise PeftError(
                f"{base.name} is told its pictures' sizes (use_additional_conditions), as PixArt-α's of 1024 pixels is, which "
                "training does not know: take a PixArt-Σ."
            )

    def said(self, pipeline: Any, text: str, device: torch.device) -> Prompt:
        hidden, mask, _, _ = pipeline.encode_prompt(text, False, device=device, max_sequence_length=300)
        return Prompt(hidden, None, mask)

    def predict(
        self, model: nn.Module, x: Tensor, time: Tensor, guidance: float | None, hidden: Tensor, **words: Tensor
    ) -> Tensor:
        dtype: Any = model.dtype
        said = model(
            x.to(dtype), encoder_hidden_states=hidden.to(dtype), encoder_attention_mask=words["mask"], timestep=time,
            added_cond_kwargs={"resolution": None, "aspect_ratio": None}, return_dict=False,
        )[0]  # fmt: skip
        return said[:, : x.shape[1]]

    def called(self, base: Base, wanted: Prompt, against: Prompt, guidance: float) -> dict[str, Any]:
        given = super().called(base, wanted, against, guidance) | with_masks(wanted, against)
        return given | {"use_resolution_binning": False}
