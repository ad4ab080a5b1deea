"""Stable Diffusion 3 and 3.5: a flow under the words of two CLIP text encoders and of T5, which a folder may go without."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
    marks = r"joint_blocks|transformer_blocks\.\d+\.(attn2\.to_q|ff_context|norm1_context)"

    def prompt(
        self, base: Base, text: str, device: torch.device, clip_skip: int = 0, encoders: Sequence[Any] | None = None
    ) -> Prompt:
        if base.has("text_encoder_3"):
            return super().prompt(base, text, device, clip_skip, encoders)
        # without T5 the pipeline puts zeros of the transformer's width in its place
        return self.said(base.text_pipeline(transformer=base.part("transformer")), text, device)

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

    def original(self, model: nn.Module) -> tuple[dict[str, str | tuple[str, ...]], Sequence[str]]:
        depth = len(model.transformer_blocks)  # type: ignore[arg-type]
        found: dict[str, str | tuple[str, ...]] = dict(_OUTSIDE)
        for number in range(depth):
            for name, paths in _BLOCK.items():
                found[f"joint_blocks.{number}.{name}"] = tuple(f"transformer_blocks.{number}.{path}" for path in paths)
        return found, ("norm_out.linear", f"transformer_blocks.{depth - 1}.norm1_context.linear")


_BLOCK = {
    "x_block.attn.qkv": ("attn.to_q", "attn.to_k", "attn.to_v"), "x_block.attn.proj": ("attn.to_out.0",),
    "x_block.attn2.qkv": ("attn2.to_q", "attn2.to_k", "attn2.to_v"), "x_block.attn2.proj": ("attn2.to_out.0",),
    "x_block.mlp.fc1": ("ff.net.0.proj",), "x_block.mlp.fc2": ("ff.net.2",),
    "x_block.adaLN_modulation.1": ("norm1.linear",),
    "context_block.attn.qkv": ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
    "context_block.attn.proj": ("attn.to_add_out",), "context_block.mlp.fc1": ("ff_context.net.0.proj",),
    "context_block.mlp.fc2": ("ff_context.net.2",), "context_block.adaLN_modulation.1": ("norm1_context.linear",),
}  # fmt: skip
_OUTSIDE: Mapping[str, str | tuple[str, ...]] = {
    "context_embedder": "context_embedder", "x_embedder.proj": "pos_embed.proj", "final_layer.linear": "proj_out",
    "final_layer.adaLN_modulation.1": "norm_out.linear",
} | {
    f"{name}.mlp.{place}": f"time_text_embed.{path}.linear_{1 + place // 2}"
    for name, path in (("t_embedder", "timestep_embedder"), ("y_embedder", "text_embedder"))
    for place in (0, 2)
}  # fmt: skip
