"""Qwen-Image: a flow over latents packed two by two, with a mean and a deviation a channel, under Qwen 2.5-VL's words."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from diffusion_peft.base.families import Family, told
from diffusion_peft.base.families.flux import packed, unpacked
from diffusion_peft.base.prompts import Prompt

if TYPE_CHECKING:
    from diffusion_peft.base.bases import Base


class QwenImage(Family):
    kind, title = "qwen_image", "Qwen-Image"
    pipelines = ("QwenImagePipeline",)
    classes = {
        "transformer": ("QwenImageTransformer2DModel",), "vae": ("AutoencoderKLQwenImage",),
        "text_encoder": ("Qwen2_5_VLForConditionalGeneration",), "tokenizer": ("Qwen2Tokenizer", "Qwen2TokenizerFast"),
    }  # fmt: skip
    shapes = {"transformer": None, "vae": None}
    fixed = {"transformer": ("zero_cond_t", "use_additional_t_cond", "use_layer3d_rope"), "vae": ("input_channels",)}
    reads = (("tokenizer", 512),)
    usual_guidance = 4.0
    marks = r"img_mlp|txt_mlp|img_mod|txt_mod"

    def latent_channels(self, base: Base) -> int:
        return 4 * base.config("vae")["z_dim"]

    def shrinks(self, base: Base) -> int:
        return 2 ** len(base.config("vae")["temperal_downsample"])

    def patch(self, base: Base) -> int:
        return 2

    def encode(self, vae: Any, pixels: Tensor) -> tuple[Tensor, Tensor]:
        posterior = vae.encode(pixels[:, :, None]).latent_dist  # a film of one picture
        return posterior.mean[:, :, 0], posterior.logvar[:, :, 0]

    def normal(self, base: Base) -> tuple[Tensor, Tensor]:
        config = base.config("vae")
        mean, deviation = (torch.tensor(config[key]).view(-1, 1, 1) for key in ("latents_mean", "latents_std"))
        return mean, 1 / deviation

    def said(self, pipeline: Any, text: str, device: torch.device) -> Prompt:
        hidden, mask = pipeline.encode_prompt(text, device, max_sequence_length=512)
        return Prompt(hidden, None, mask)

    def predict(
        self, model: nn.Module, x: Tensor, time: Tensor, guidance: float | None, hidden: Tensor, **words: Tensor
    ) -> Tensor:
        dtype: Any = model.dtype
        h, w = x.shape[-2:]
        said = model(
            hidden_states=packed(x).to(dtype), timestep=time, guidance=told(guidance, x),
            encoder_hidden_states=hidden.to(dtype), encoder_hidden_states_mask=words.get("mask"),
            img_shapes=[(1, h // 2, w // 2)] * len(x), return_dict=False,
        )[0]  # fmt: skip
        return unpacked(said, h, w)

    def called(self, base: Base, wanted: Prompt, against: Prompt, guidance: float) -> dict[str, Any]:
        given = {"prompt_embeds": wanted.hidden, "prompt_embeds_mask": _whole(wanted)}
        if self.is_distilled(base):
            return given | {"guidance_scale": guidance}
        return given | {
            "true_cfg_scale": guidance, "negative_prompt_embeds": against.hidden,
            "negative_prompt_embeds_mask": _whole(against),
        }  # fmt: skip


def _whole(prompt: Prompt) -> Tensor:
    """Its mask, of ones where it has none: the pipeline warns of none."""
    return torch.ones(prompt.hidden.shape[:2], device=prompt.hidden.device) if prompt.mask is None else prompt.mask
