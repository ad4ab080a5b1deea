"""Flux.2 klein: a flow over latents whose two by two are channels, brought to mean 0 by the VAE's running statistics, under
three layers of Qwen 3."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffusion_peft.base.families import AUTOENCODER, Family, told
from diffusion_peft.base.prompts import Prompt

if TYPE_CHECKING:
    from diffusion_peft.base.bases import Base


class Flux2Klein(Family):
    kind, title = "flux2", "Flux.2 klein"
    pipelines = ("Flux2KleinPipeline",)
    classes = {
        "transformer": ("Flux2Transformer2DModel",), "vae": ("AutoencoderKLFlux2",), "text_encoder": ("Qwen3ForCausalLM",),
        "tokenizer": ("Qwen2Tokenizer", "Qwen2TokenizerFast"),
    }  # fmt: skip
    shapes = {
        "transformer": None,
        "vae": (*AUTOENCODER, "batch_norm_eps", "batch_norm_momentum", "decoder_block_out_channels"),
    }
    reads = (("tokenizer", 512),)
    usual_guidance = 4.0
    marks = r"to_qkv_mlp_proj|stream_modulation|single_transformer_blocks\.\d+\.attn\.to_out"

    def latent_channels(self, base: Base) -> int:
        return 4 * base.config("vae")["latent_channels"]

    def least_side(self, base: Base) -> int:
        return 2 * base.shrinks

    def encode(self, vae: Any, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """The posterior's mode, each two by two of it as channels."""
        mean = F.pixel_unshuffle(vae.encode(pixels).latent_dist.mode(), 2)
        return mean, torch.full_like(mean, -torch.inf)

    def normal(self, base: Base) -> tuple[Tensor, Tensor]:
        vae = base.part("vae")
        deviation = (vae.bn.running_var + vae.config.batch_norm_eps).sqrt()
        return vae.bn.running_mean.view(-1, 1, 1).cpu().clone(), (1 / deviation).view(-1, 1, 1).cpu()

    def said(self, pipeline: Any, text: str, device: torch.device) -> Prompt:
        hidden, _ = pipeline.encode_prompt(text, device=device, max_sequence_length=512)
        return Prompt(hidden, None)

    def predict(
        self, model: nn.Module, x: Tensor, time: Tensor, guidance: float | None, hidden: Tensor, **words: Tensor
    ) -> Tensor:
        dtype: Any = model.dtype
        h, w = x.shape[-2:]
        said = model(
            hidden_states=x.flatten(2).transpose(1, 2).to(dtype), timestep=time, guidance=told(guidance, x),
            encoder_hidden_states=hidden.to(dtype), img_ids=ids(x, h, w, 1), txt_ids=ids(x, 1, 1, hidden.shape[1]),
            return_dict=False,
        )[0]  # fmt: skip
        return said.transpose(1, 2).unflatten(2, (h, w))


def ids(x: Tensor, rows: int, columns: int, words: int) -> Tensor:
    """Places B N 4 of tokens: time 0, row, column, word."""
    counts = (torch.arange(count) for count in (1, rows, columns, words))
    return torch.cartesian_prod(*counts).to(x.device).expand(len(x), -1, -1)
