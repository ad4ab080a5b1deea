"""Flux.1: a flow over latents packed two by two, under the words of T5 and CLIP's pooled ones; the `dev` models are distilled
and are told the scale of their guidance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffusion_peft.base.families import AUTOENCODER, CLIP, T5, Family, told
from diffusion_peft.base.prompts import Prompt

if TYPE_CHECKING:
    from diffusion_peft.base.bases import Base


def packed(x: Tensor) -> Tensor:
    """B C h w → B h/2·w/2 4C, a token's values by channel, row, column."""
    return F.pixel_unshuffle(x, 2).flatten(2).transpose(1, 2)


def unpacked(tokens: Tensor, h: int, w: int) -> Tensor:
    """`packed` undone."""
    return F.pixel_shuffle(tokens.transpose(1, 2).unflatten(2, (h // 2, w // 2)), 2)


class Flux(Family):
    kind, title = "flux", "Flux.1"
    editor = "FluxKontextPipeline"
    pipelines = ("FluxPipeline", editor)
    texts = ("text_encoder", "text_encoder_2")
    classes = {
        "transformer": ("FluxTransformer2DModel",), "vae": ("AutoencoderKL",), "text_encoder": CLIP[0][:1],
        "text_encoder_2": T5[0], "tokenizer": CLIP[1], "tokenizer_2": T5[1],
    }  # fmt: skip
    shapes = {"transformer": None, "vae": (*AUTOENCODER, "shift_factor")}
    reads = (("tokenizer_2", 512),)
    usual_guidance = 3.5
    marks = r"single_transformer_blocks\.\d+\.(attn\.to_q|norm|proj)|double_blocks|single_blocks"

    def latent_channels(self, base: Base) -> int:
        return 4 * base.config("vae")["latent_channels"]

    def patch(self, base: Base) -> int:
        return 2

    def guidance(self, base: Base) -> float:
        return self.usual_guidance if self.is_distilled(base) else 1.0  # schnell has none

    def passes(self, base: Base, guidance: float) -> int:
        return 1 if self.is_distilled(base) or guidance <= 1 else 2

    def said(self, pipeline: Any, text: str, device: torch.device) -> Prompt:
        hidden, pooled, _ = pipeline.encode_prompt(text, text, device=device, max_sequence_length=512)
        return Prompt(hidden, pooled)

    def predict(
        self, model: nn.Module, x: Tensor, time: Tensor, guidance: float | None, hidden: Tensor, **words: Tensor
    ) -> Tensor:
        """A source's tokens stand behind the picture's, at the same rows and columns of another plane (Kontext)."""
        dtype: Any = model.dtype
        h, w = x.shape[-2:]
        tokens, places = packed(x), grid_of(x)
        count = tokens.shape[1]
        if "source" in words:
            tokens = torch.cat([tokens, packed(words["source"])], 1)
            places = torch.cat([places, grid_of(words["source"], plane=1)])
        said = model(
            hidden_states=tokens.to(dtype), timestep=time, guidance=told(guidance, x),
            encoder_hidden_states=hidden.to(dtype), pooled_projections=words["pooled"].to(dtype),
            txt_ids=x.new_zeros(hidden.shape[1], 3), img_ids=places, return_dict=False,
        )[0]  # fmt: skip
        return unpacked(said[:, :count], h, w)

    def edited(self, source: Tensor | None, guidance: float | None, height: int, width: int) -> dict[str, Any]:
        """The size that is asked for, where the pipeline would bring it to a megapixel."""
        return {"image": source, "max_area": height * width}

    def called(self, base: Base, wanted: Prompt, against: Prompt, guidance: float) -> dict[str, Any]:
        given = {"prompt_embeds": wanted.hidden, "pooled_prompt_embeds": wanted.pooled, "guidance_scale": guidance}
        if self.is_distilled(base):
            return given
        return given | {
            "true_cfg_scale": guidance, "negative_prompt_embeds": against.hidden,
            "negative_pooled_prompt_embeds": against.pooled,
        }  # fmt: skip

    def original(self, model: nn.Module) -> tuple[dict[str, str | tuple[str, ...]], Sequence[str]]:
        found: dict[str, str | tuple[str, ...]] = dict(_OUTSIDE)
        for number in range(len(model.transformer_blocks)):  # type: ignore[arg-type]
            for stream, names in _DOUBLE.items():
                for name, paths in names.items():
                    key = f"double_blocks.{number}.{stream}_{name}"
                    found[key] = tuple(f"transformer_blocks.{number}.{path}" for path in paths)
        for number in range(len(model.single_transformer_blocks)):  # type: ignore[arg-type]
            for name, paths in _SINGLE.items():
                key = f"single_blocks.{number}.{name}"
                found[key] = tuple(f"single_transformer_blocks.{number}.{path}" for path in paths)
        return found, ("norm_out.linear",)


_DOUBLE = {
    "img": {
        "attn.qkv": ("attn.to_q", "attn.to_k", "attn.to_v"), "attn.proj": ("attn.to_out.0",), "mlp.0": ("ff.net.0.proj",),
        "mlp.2": ("ff.net.2",), "mod.lin": ("norm1.linear",),
    },
    "txt": {
        "attn.qkv": ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"), "attn.proj": ("attn.to_add_out",),
        "mlp.0": ("ff_context.net.0.proj",), "mlp.2": ("ff_context.net.2",), "mod.lin": ("norm1_context.linear",),
    },
}  # fmt: skip
_SINGLE = {
    "linear1": ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp"), "linear2": ("proj_out",), "modulation.lin": ("norm.linear",),
}  # fmt: skip
_OUTSIDE: Mapping[str, str | tuple[str, ...]] = {
    "img_in": "x_embedder", "txt_in": "context_embedder", "final_layer.linear": "proj_out",
    "final_layer.adaLN_modulation.1": "norm_out.linear",
} | {
    f"{name}.{layer}_layer": f"time_text_embed.{path}.linear_{number}"
    for name, path in (("time_in", "timestep_embedder"), ("vector_in", "text_embedder"), ("guidance_in", "guidance_embedder"))
    for number, layer in enumerate(("in", "out"), 1)
}  # fmt: skip


def grid_of(x: Tensor, plane: int = 0) -> Tensor:
    """The places of packed latents, h/2·w/2 3: plane, row, column."""
    h, w = x.shape[-2] // 2, x.shape[-1] // 2
    rows, columns = torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij")
    return torch.stack([torch.full((h, w), float(plane)), rows, columns], -1).reshape(-1, 3).to(x.device)
