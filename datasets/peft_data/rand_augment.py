"""RandAugment as timm scales it (`rand-m7-n4-mstd0.5-inc1`), on whole pictures; chance comes from a generator alone.

Cubuk et al., RandAugment, 2020; scales and odds as in huggingface/pytorch-image-models, timm/data/auto_augment.py, which
SlowFast and linziyi96/st-adapter took over. Levels go from 0 to 10 there, in torchvision from 0 to 30.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from PIL import Image, ImageEnhance, ImageOps

Change = Callable[[Image.Image], Image.Image]
FILL = (128, 128, 128)
TOP = 10.0


def drawn_changes(
    generator: torch.Generator, operations: int = 4, magnitude: float = 7.0, deviation: float = 0.5, chance: float = 0.5
) -> list[Change]:
    """What is done to a picture, and alike to all frames of a clip: `operations` draws from `KINDS` with replacement, each
    carried out with probability `chance` at a level from N(magnitude, deviation²), cut to 0 … 10.

    A picture is an 8-bit RGB image of any size, and keeps it.
    """
    changes = []
    for kind in torch.randint(len(KINDS), (operations,), generator=generator).tolist():
        does, sign = torch.rand(2, generator=generator).tolist()
        noise = float(torch.randn((), generator=generator))
        level = min(TOP, max(0.0, magnitude + deviation * noise)) / TOP
        if does < chance:
            changes.append(KINDS[kind](level, -1.0 if sign < 0.5 else 1.0))
    return changes


def _warp(a: float = 0.0, b: float = 0.0, x: float = 0.0, y: float = 0.0) -> Change:
    """Shear by a (across) and b (down), shift by x and y of the sides."""

    def change(image: Image.Image) -> Image.Image:
        matrix = (1, a, x * image.width, b, 1, y * image.height)
        return image.transform(image.size, Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR, fillcolor=FILL)

    return change


def _rotated(degrees: float) -> Change:
    return lambda image: image.rotate(degrees, Image.Resampling.BILINEAR, fillcolor=FILL)


def _solarised(threshold: int) -> Change:
    return lambda image: ImageOps.solarize(image, threshold)


def _brighter_below(add: int, threshold: int = 128) -> Change:
    table = [min(255, value + add) if value < threshold else value for value in range(256)]
    return lambda image: image.point(table * 3)


def _posterised(bits: int) -> Change:
    mask = 256 - (1 << (8 - bits))  # Pillow's own refuses 0 bits, which a level of 10 gives
    return lambda image: image.point([value & mask for value in range(256)] * 3)


def _enhanced(kind: Callable, factor: float) -> Change:
    return lambda image: kind(image).enhance(factor)


KINDS: tuple[Callable[[float, float], Change], ...] = (
    lambda level, sign: ImageOps.autocontrast,
    lambda level, sign: ImageOps.equalize,
    lambda level, sign: ImageOps.invert,
    lambda level, sign: _rotated(sign * 30 * level),
    lambda level, sign: _posterised(4 - int(4 * level)),
    lambda level, sign: _solarised(256 - int(256 * level)),
    lambda level, sign: _brighter_below(int(110 * level)),
    lambda level, sign: _enhanced(ImageEnhance.Color, 1 + sign * 0.9 * level),
    lambda level, sign: _enhanced(ImageEnhance.Contrast, 1 + sign * 0.9 * level),
    lambda level, sign: _enhanced(ImageEnhance.Brightness, 1 + sign * 0.9 * level),
    lambda level, sign: _enhanced(ImageEnhance.Sharpness, 1 + sign * 0.9 * level),
    lambda level, sign: _warp(a=sign * 0.3 * level),
    lambda level, sign: _warp(b=sign * 0.3 * level),
    lambda level, sign: _warp(x=sign * 0.45 * level),
    lambda level, sign: _warp(y=sign * 0.45 * level),
)
"""The fifteen operations, from their level (0 to 1) and a drawn sign; those with `increasing` scales."""
