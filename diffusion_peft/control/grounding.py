"""Boxes with phrases: checked, and as tensors for GLIGEN."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from peft_core.errors import PeftError

Box = Sequence[float]


def check_boxes(boxes: Sequence[Box], phrases: Sequence[str], where: str) -> None:
    """Raises PeftError: boxes outside the picture or inverted, more than fit, or not one phrase each."""
    if len(boxes) != len(phrases):
        raise PeftError(f"{where} has {len(boxes)} boxes and {len(phrases)} phrases: each box needs one phrase.")
    if len(boxes) > MOST_BOXES:
        raise PeftError(f"{where} has {len(boxes)} boxes, but GLIGEN takes {MOST_BOXES} at the most.")
    for number, box in enumerate(boxes, 1):
        if len(box) != 4 or not all(isinstance(side, int | float) for side in box):
            raise PeftError(f"box {number} of {where} must be four numbers, left, top, right, bottom, not {list(box)}.")
        left, top, right, bottom = box
        shown = ", ".join(f"{side:g}" for side in box)
        if min(box) < 0 or max(box) > 1:
            raise PeftError(
                f"box {number} of {where} ({shown}) leaves the picture: sides are shares of it, from 0 to 1 (divide pixels by "
                "width and height)."
            )
        if right <= left or bottom <= top:
            raise PeftError(
                f"box {number} of {where} ({shown}) is inverted or empty: give left, top, right, bottom, not left, top, width, "
                "height."
            )


@torch.no_grad()
def encode_boxes(
    encoders: Sequence[Any], tokenizers: Sequence[Any], boxes: Sequence[Box], phrases: Sequence[str]
) -> dict[str, Tensor]:
    """boxes 1 30 4, phrases 1 30 D (the text encoders' pooled outputs, side by side for SDXL), present 1 30."""
    width = sum(_width(encoder) for encoder in encoders)
    found = {"boxes": torch.zeros(1, MOST_BOXES, 4), "phrases": torch.zeros(1, MOST_BOXES, width)}
    found["present"] = torch.zeros(1, MOST_BOXES)
    if boxes:
        parts = [_pooled(e, t, list(phrases)) for e, t in zip(encoders, tokenizers, strict=True)]
        found["boxes"][0, : len(boxes)] = torch.tensor([list(map(float, box)) for box in boxes])
        found["phrases"][0, : len(boxes)] = torch.cat(parts, -1)
        found["present"][0, : len(boxes)] = 1
    return found


def _width(encoder: Any) -> int:
    return int(encoder.config.projection_dim if hasattr(encoder, "text_projection") else encoder.config.hidden_size)


def _pooled(encoder: Any, tokenizer: Any, phrases: list[str]) -> Tensor:
    """What GLIGEN's pipeline takes: the pooled output; of an encoder with a projection, the projected one."""
    tokens = tokenizer(phrases, padding=True, truncation=True, return_tensors="pt").to(encoder.device)
    out = encoder(**tokens)
    return (out.text_embeds if hasattr(encoder, "text_projection") else out.pooler_output).float().cpu()


MOST_BOXES = 30
