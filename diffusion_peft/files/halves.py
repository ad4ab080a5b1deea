"""B-LoRA's halves of an SDXL LoRA: what its picture shows, and how it looks.

Frenkel et al., "Implicit Style-Content Separation using B-LoRA", ECCV 2024: of the UNet's transformers, the first of the first up
block decides on the content, the second on the style; a LoRA of these two (the method b_lora) learns one picture, and its halves
go with other prompts, and with other pictures' halves.
"""

from __future__ import annotations

from typing import Literal

from diffusion_peft.files.layers import Layer
from peft_core.errors import PeftError

Half = Literal["content", "style"]
HALVES: dict[Half, str] = {"content": "up_blocks.0.attentions.0.", "style": "up_blocks.0.attentions.1."}


def half_of(layers: dict[str, Layer], half: Half, who: str) -> dict[str, Layer]:
    """The layers of one half.

    Raises:
        PeftError: there are none.
    """
    found = {path: layer for path, layer in layers.items() if path.startswith(HALVES[half])}
    if not found:
        raise PeftError(
            f"{who} has no layer under {HALVES[half].rstrip('.')}, which is B-LoRA's {half}: train it with --method b_lora."
        )
    return found


def check_halves(kind: str, name: str) -> None:
    """Raises PeftError: a base whose halves nobody knows."""
    if kind != "sdxl":
        raise PeftError(f"B-LoRA's halves are known of Stable Diffusion XL alone, and {name} is none.")
