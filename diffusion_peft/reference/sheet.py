"""A page of pictures with their prompts underneath."""

from __future__ import annotations

import textwrap
from pathlib import Path

import torch
from PIL import Image, ImageDraw


def sheet(pictures: torch.Tensor, prompts: list[str], path: Path, rows: int = 6, columns: int = 8) -> None:
    """Writes the first rows × columns pictures (uint8 N 3 S S), enlarged twice, as one PNG of 256 colours."""
    side, text, gap = 2 * pictures.shape[-1], 62, 6
    width, height = side + gap, side + text + gap
    page = Image.new("RGB", (columns * width, rows * height), "white")
    pen = ImageDraw.Draw(page)
    for k, (picture, prompt) in enumerate(zip(pictures[: rows * columns], prompts, strict=False)):
        left, top = k % columns * width, k // columns * height
        image = Image.fromarray(picture.permute(1, 2, 0).contiguous().numpy())
        page.paste(image.resize((side, side), Image.Resampling.NEAREST), (left, top))
        pen.multiline_text((left, top + side + 1), textwrap.fill(prompt, 21), "black", spacing=1)
    path.parent.mkdir(parents=True, exist_ok=True)
    page.quantize(256).save(path, optimize=True)
