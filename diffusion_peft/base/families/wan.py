"""Wan 2.1: a flow over films, a picture among them, under UMT5's words; each channel of its latents has a mean and a deviation.

Latents C f h w of f frames are B C·f h w for all but the denoiser and the VAE.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from diffusion_peft.base.families import Family
from diffusion_peft.base.prompts import Prompt
from peft_core.errors import PeftError

if TYPE_CHECKING:
    from diffusion_peft.base.bases import Base


class Wan(Family):
    kind, title = "wan", "Wan 2.1"
    pipelines = ("WanPipeline",)
    classes = {
        "transformer": ("WanTransformer3DModel",), "vae": ("AutoencoderKLWan",), "text_encoder": ("UMT5EncoderModel",),
        "tokenizer": ("T5Tokenizer", "T5TokenizerFast"),
    }  # fmt: skip
    shapes = {"transformer": None, "vae": None}
    fixed = {
        "transformer": ("image_dim", "added_kv_proj_dim", "pos_embed_seq_len"),
        "vae": ("is_residual", "in_channels", "out_channels", "patch_size"),
    }
    reads = (("tokenizer", 512),)
    usual_guidance = 5.0
    films = True
    marks = r"\bblocks\.\d+\.(attn1|self_attn|cross_attn|ffn)\."

    def check(self, base: Base) -> None:
        super().check(base)
        if base.has("transformer_2") or base.index.get("boundary_ratio") or base.index.get("expand_timesteps"):
            raise PeftError(
                f"{base.name} is of Wan 2.2, with two transformers or a time for each frame; what is known is Wan 2.1's text to "
                "video: choose another base."
            )

    def latent_channels(self, base: Base) -> int:
        return base.config("vae")["z_dim"]

    def shrinks(self, base: Base) -> int:
        return 2 ** len(base.config("vae")["temperal_downsample"])

    def patch(self, base: Base) -> int:
        return int(base.config("transformer")["patch_size"][-1])

    def resolution(self, base: Base) -> int:
        return 480 // base.least_side * base.least_side or base.least_side

    def film_step(self, base: Base) -> int:
        return 2 ** sum(base.config("vae")["temperal_downsample"])

    def encode(self, vae: Any, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log-variance of normal latents; pixels are B 3·F H W."""
        posterior = vae.encode(pixels.unflatten(1, (3, -1))).latent_dist
        shift, scale = (torch.tensor(getattr(vae.config, key)).to(pixels) for key in ("latents_mean", "latents_std"))
        mean = (posterior.mean - shift.view(-1, 1, 1, 1)) / scale.view(-1, 1, 1, 1)
        return mean.flatten(1, 2), (posterior.logvar - 2 * scale.log().view(-1, 1, 1, 1)).flatten(1, 2)

    def normal(self, base: Base) -> tuple[Tensor, Tensor]:
        return torch.tensor(0.0), torch.tensor(1.0)

    def said(self, pipeline: Any, text: str, device: torch.device) -> Prompt:
        hidden, _ = pipeline.encode_prompt(
            text, do_classifier_free_guidance=False, max_sequence_length=512, device=device
        )
        return Prompt(hidden, None)

    def predict(
        self, model: nn.Module, x: Tensor, time: Tensor, guidance: float | None, hidden: Tensor, **words: Tensor
    ) -> Tensor:
        dtype: Any = model.dtype
        channels = model.config.in_channels  # type: ignore[union-attr]
        said = model(
            hidden_states=x.unflatten(1, (channels, -1)).to(dtype), timestep=time * 1000,  # type: ignore[operator]
            encoder_hidden_states=hidden.to(dtype), return_dict=False,
        )[0]  # fmt: skip
        return said.flatten(1, 2)
