"""What is known of a backbone beside its weights: size, crop, mean and std."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor, nn

TOWER = "open_clip:"
"""Begins the name of an image tower where backbones of timm are named, too: `open_clip:ViT-B-16/openai`."""
HF = "hf:"
"""Begins the name of a model of transformers: `hf:facebook/dinov2-small`, `hf:./folder`."""
Tokenizer = Callable[..., Tensor]
"""Texts to token ids, as open_clip's tokenizers do it."""


@dataclass(frozen=True)
class Backbone:
    """What a checkpoint expects of its input, and where it comes from.

    Args:
        name: as it was asked for.
        family: which training the weights come from: timm's tag (`orig_in21k`, `augreg_in21k`, …), `reference`, or the
            file or folder.
        architecture: timm's name of the architecture.
        input_size: height and width in pixels.
        mean, std: of the three channels, which go from 0 to 1.
        crop_pct: the part of the shorter side that is kept where pictures are cropped.
    """

    name: str
    family: str
    architecture: str
    input_size: tuple[int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    crop_pct: float = 0.875

    def card(self) -> dict[str, Any]:
        """For an adapter's card."""
        return {
            f"backbone_{key}" if key in ("name", "architecture") else key: value for key, value in asdict(self).items()
        }


def new_head(width: int, classes: int) -> nn.Linear:
    """A linear head for features of this width, as timm starts its own: W ~ N(0, 0.02²), cut at 2, b = 0."""
    head = nn.Linear(width, classes)
    nn.init.trunc_normal_(head.weight, std=0.02)
    nn.init.zeros_(head.bias)
    return head
