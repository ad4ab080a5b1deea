"""The models that benchmarks of diffusion compare, ours and Hugging Face PEFT's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from torch import nn

from peft_core import adapt

_ATTENTION = r"to_q|to_k|to_v|to_out\.0"
TARGETS = {
    "attention": ("attn", "cross_attn"),
    "attention + feed-forward": ("attn", "cross_attn", "mlp"),
    "LoCon set": ("attn", "cross_attn", "mlp", "proj_io", "conv"),
}


PATTERNS = {
    "attention": rf".*\.({_ATTENTION})",
    "attention + feed-forward": rf".*\.({_ATTENTION}|ff\.net\.0\.proj|ff\.net\.2)",
    "LoCon set": rf".*\.({_ATTENTION}|ff\.net\.0\.proj|ff\.net\.2|proj_in|proj_out|conv1|conv2|conv_shortcut|conv)",
}


def small_unet(width: int = 80) -> UNet2DConditionModel:
    """SD 1.5's UNet with channels w, 2w, 4w, 4w (its own w is 320); 53 M parameters at 80."""
    torch.manual_seed(0)
    return UNet2DConditionModel(
        sample_size=32, block_out_channels=(width, 2 * width, 4 * width, 4 * width), layers_per_block=2,
        cross_attention_dim=768, attention_head_dim=8, norm_num_groups=16,
    )  # fmt: skip


def by_peft(name: str) -> Callable[[nn.Module], nn.Module]:
    def make(unet: Any) -> nn.Module:
        import peft

        unet.requires_grad_(False)
        unet.add_adapter(peft.LoraConfig(r=4, lora_alpha=4, target_modules=PATTERNS[name]))
        return unet

    return make


def ours(name: str) -> Callable[[nn.Module], nn.Module]:
    return lambda unet: adapt(unet, "lora", rank=4, targets=TARGETS[name])
