"""What the tasks share: backdrops, painting, and the last touch of light and noise."""

from __future__ import annotations

import torch

from .draw import Draw, hashed, noise, pixel_grid
from .render import background, to_uint8
from .scene import FLAT_GROUNDS, make_scene


def paint(canvas: torch.Tensor, cover: torch.Tensor, colour: torch.Tensor) -> torch.Tensor:
    """`colour` (N 3) over `canvas` (N 3 S S) where `cover` (N S S, in [0, 1]) says."""
    return canvas + (colour[:, :, None, None] - canvas) * cover[:, None]


def soft(distance: torch.Tensor, size: int) -> torch.Tensor:
    """Cover from a signed distance in canvas units (negative inside), antialiased for `size` pixels."""
    return (0.5 - distance * size / 2).clamp(0, 1)


def backdrop(draw: Draw, n: int, size: int, ground: torch.Tensor | None = None, gap: float = 0.12) -> torch.Tensor:
    """N empty pictures N 3 S S of flat kinds; their first colour is `ground` (N 3) or drawn."""
    first = draw.colour(n, low=0.15) if ground is None else ground
    strength = draw.uniform(n, 1, low=0.1, high=0.5)
    second = first + (draw.colour(n, low=0.15) - first) * strength
    scene = make_scene(
        draw.seeds(n),
        1,
        background=draw.choose(n, among=FLAT_GROUNDS),
        ground=first,
        ground2=second,
        ground_grain=draw.uniform(n, low=1.5, high=5),
        light=torch.cat((draw.uniform(n, 1, low=-1), torch.zeros(n, 2)), 1),
    )
    return background(scene, size)[0].permute(0, 3, 1, 2)


def finish(draw: Draw, canvas: torch.Tensor, grain: float = 0.06) -> torch.Tensor:
    """uint8 pictures after uneven light, a change of exposure and contrast, and sensor noise."""
    n, size = len(canvas), canvas.shape[-1]
    x, y = pixel_grid(size)
    slope = draw.uniform(n, 2, 1, 1, low=-0.15, high=0.15)
    light = 1 + slope[:, 0] * x + slope[:, 1] * y
    exposure, contrast = draw.uniform(n, 1, 1, 1, low=-0.1, high=0.1), draw.uniform(n, 1, 1, 1, low=0.7, high=1.1)
    seed = draw.seeds(n)[:, None]
    index = torch.arange(3 * size * size)[None]
    speck = (hashed(seed, 77, index) + hashed(seed, 78, index) - 1).view(n, 3, size, size)
    amount = draw.uniform(n, 1, 1, 1, high=grain) * 2
    return to_uint8((canvas * light[:, None] - 0.5) * contrast + 0.5 + exposure + speck * amount)


def ridge(seed: torch.Tensor, size: int, cells: int, salt: int, octaves: int = 1) -> torch.Tensor:
    """A random line over the picture's width: N 1 S heights in [0, 1]."""
    return noise(seed, size, cells, salt, octaves)[:, size // 2 : size // 2 + 1]
