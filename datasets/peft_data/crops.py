"""Parts of pictures: which part is drawn, for pictures of any sizes, and how it is cut out of a frame."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from peft_data.pictures import PIL_MODES

Parts = Callable[[Tensor, Tensor, torch.Generator], Tensor]
"""Heights and widths of N pictures, int64 `N`, and a generator → a part of each, int64 `N 4`: top, left, height, width."""

SIDES = (1.0, 0.875, 0.75, 0.66)
PLACES = tuple((y, x) for y in (0, 2, 4) for x in (0, 2, 4)) + ((1, 1), (1, 3), (3, 1), (3, 3))
"""Of a part in quarters of the room that it leaves: corners, middles of the sides, the centre, and between these."""


def random_part(
    heights: Tensor,
    widths: Tensor,
    generator: torch.Generator,
    scale: tuple[float, float] = (0.08, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
) -> Tensor:
    """A share of the area uniform in `scale` with an aspect ratio log-uniform in `ratio`, as torchvision's
    `RandomResizedCrop` draws them; where none of ten draws fits into the picture it is the whole."""
    count = len(heights)
    draws = torch.rand(4, count, 10, generator=generator, dtype=torch.float64)
    area = (heights * widths)[:, None] * (scale[0] + (scale[1] - scale[0]) * draws[0])
    aspect = torch.exp(math.log(ratio[0]) + (math.log(ratio[1]) - math.log(ratio[0])) * draws[1])
    w, h = (area * aspect).sqrt().round(), (area / aspect).sqrt().round()
    fits = (w >= 1) & (w <= widths[:, None]) & (h >= 1) & (h <= heights[:, None])
    first, found = fits.int().argmax(1, keepdim=True), fits.any(1)
    w = torch.where(found, w.gather(1, first)[:, 0], widths.double())
    h = torch.where(found, h.gather(1, first)[:, 0], heights.double())
    left, top = (draws[2, :, 0] * (widths - w + 1)).floor(), (draws[3, :, 0] * (heights - h + 1)).floor()
    return torch.stack([top, left, h, w], 1).long()


def multi_scale_part(heights: Tensor, widths: Tensor, generator: torch.Generator) -> Tensor:
    """TSN's crops (Wang et al., 2016), AdaptFormer's on clips: height and width are `SIDES` of the shorter side, at most one
    step apart, at one of thirteen `PLACES`."""
    count = len(heights)
    pairs = [(h, w) for h in range(len(SIDES)) for w in range(len(SIDES)) if abs(h - w) <= 1]
    pair = torch.tensor(pairs)[torch.randint(len(pairs), (count,), generator=generator)]
    place = torch.tensor(PLACES)[torch.randint(len(PLACES), (count,), generator=generator)]
    size = (torch.tensor(SIDES)[pair] * heights.minimum(widths)[:, None]).long().clamp(min=1)
    corner = (torch.stack([heights, widths], 1) - size) // 4 * place
    return torch.cat([corner, size], 1)


def jitter_part(heights: Tensor, widths: Tensor, generator: torch.Generator, most: float = 1.15) -> Tensor:
    """A square anywhere in each picture as if its shorter side had been scaled by a factor uniform in 1 to `most`: the side is
    1 / factor of it. ST-Adapter's crops on Kinetics."""
    draws = torch.rand(3, len(heights), generator=generator, dtype=torch.float64)
    side = (heights.minimum(widths) / (1 + (most - 1) * draws[0])).round().clamp(min=1)
    top, left = (draws[1] * (heights - side + 1)).floor(), (draws[2] * (widths - side + 1)).floor()
    return torch.stack([top, left, side, side], 1).long()


def cut(
    frame: np.ndarray, part: tuple[int, int, int, int], own: tuple[int, int], size: tuple[int, int], interpolation: str
) -> Tensor:
    """A part of a frame at `size`, uint8 `3 H W`.

    Args:
        frame: uint8 `h w 3`, the file's own frame or one that was made smaller.
        part: top, left, height, width in pixels of the file's own frame.
        own: height and width of that.
    """
    top, left, height, width = part
    if frame.shape[:2] == tuple(own):
        piece = torch.from_numpy(frame)[top : top + height, left : left + width]
        return scaled(piece.permute(2, 0, 1), size, interpolation)
    down, across = frame.shape[0] / own[0], frame.shape[1] / own[1]
    box = (left * across, top * down, (left + width) * across, (top + height) * down)
    x, y = math.floor(box[0] + 1e-6), math.floor(box[1] + 1e-6)  # nothing beyond the part enters its edge
    image = Image.fromarray(frame[y : math.ceil(box[3] - 1e-6), x : math.ceil(box[2] - 1e-6)])
    inside = (max(0.0, box[0] - x), max(0.0, box[1] - y), min(image.width, box[2] - x), min(image.height, box[3] - y))
    pixels = np.asarray(image.resize((size[1], size[0]), PIL_MODES[interpolation], box=inside))
    return torch.from_numpy(pixels.transpose(2, 0, 1).copy())


def scaled(piece: Tensor, size: tuple[int, int], interpolation: str = "bicubic") -> Tensor:
    """uint8 `… h w` at `size` with antialiasing. Torch resizes bytes natively: channels last 2 to 3 × faster than Pillow and 9 ×
    faster than `grid_sample` resamples a batch of floats on a CPU; values
    differ from Pillow's by 1 of 255, by a few where noise overshoots between its two passes."""
    if tuple(piece.shape[-2:]) == tuple(size):
        return piece.contiguous()
    if interpolation not in ("bicubic", "bilinear"):
        flat = piece.reshape(-1, 3, *piece.shape[-2:]).permute(0, 2, 3, 1).contiguous().numpy()
        done = [Image.fromarray(one).resize((size[1], size[0]), PIL_MODES[interpolation]) for one in flat]
        return torch.from_numpy(np.stack([np.asarray(one).transpose(2, 0, 1) for one in done])).reshape(
            *piece.shape[:-2], *size
        )
    whole = torch.nn.functional.interpolate(piece[None], size=list(size), mode=interpolation, antialias=True)
    return whole[0].contiguous()
