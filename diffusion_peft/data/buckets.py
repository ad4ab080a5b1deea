"""Aspect-ratio buckets: sizes of about the same area, so that pictures are cropped little and batches have one shape."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

Size = tuple[int, int]


@dataclass(frozen=True)
class Crop:
    """How a picture of H W comes to a bucket: resized to `resized` (covering it), then cut from `corner` (top, left)."""

    size: Size
    resized: Size
    corner: Size


def make_buckets(side: int, step: int, longest: float = 2.0) -> list[Size]:
    """Sizes H W in steps of `step` with at most side² pixels and sides at most `longest` : 1, the square first."""
    top = side * side
    found = {(side, side)}
    for height in range(step, int(side * math.sqrt(longest)) + 1, step):
        width = top // height // step * step
        if width and max(height, width) <= longest * min(height, width):
            found |= {(height, width), (width, height)}
    return sorted(found, key=lambda size: (size != (side, side), size))


def bucket_step(side: int, least: int) -> int:
    """An eighth of the side (64 at 512), as a multiple of what UNet and VAE can halve without a rest."""
    return max(1, round(side / 8 / least)) * least


def fit_to(height: int, width: int, buckets: list[Size]) -> Crop:
    """The bucket whose shape is nearest to the picture's, and the crop of its centre."""
    shape = math.log(height / width)
    size = min(buckets, key=lambda b: abs(math.log(b[0] / b[1]) - shape))
    scale = max(size[0] / height, size[1] / width)
    resized = (max(size[0], round(height * scale)), max(size[1], round(width * scale)))
    return Crop(size, resized, ((resized[0] - size[0]) // 2, (resized[1] - size[1]) // 2))


def cut(image: Image.Image, crop: Crop, flip: bool = False, how: Image.Resampling = Image.Resampling.LANCZOS) -> Tensor:
    """The picture as float 3 H W from −1 to 1."""
    height, width = crop.resized
    if image.size != (width, height):
        image = image.resize((width, height), how)
    top, left = crop.corner
    pixels = np.asarray(image)[top : top + crop.size[0], left : left + crop.size[1]]
    if flip:
        pixels = pixels[:, ::-1]
    return torch.from_numpy(pixels.transpose(2, 0, 1).copy()).float() / 127.5 - 1
