"""How the pictures of a few-shot set differ from those of pretraining: light, reflection, weather, distance.

A set keeps one shift for all its pictures, as a real data set keeps its camera. So zero-shot reads all of them wrong in the
same way, which a few labelled pictures can tell a model.
"""

from __future__ import annotations

import torch
from torch.nn import functional as F

from .draw import Draw, noise, pixel_grid
from .render import to_uint8

BORDER = 0.35
"""Share of the picture's width and height that a close-up leaves out."""


def by_lamplight(draw: Draw, picture: torch.Tensor) -> torch.Tensor:
    """Warm light that leaves little blue, and some of it scattered into the lens."""
    n = len(picture)
    lamp = _rgb(0.75, 0.50, 0.25) * draw.uniform(n, 1, 1, 1, low=0.85, high=1.1)
    return picture * lamp + _rgb(0.22, 0.17, 0.12) * draw.uniform(n, 1, 1, 1, low=0.7, high=1.2)


def in_water(draw: Draw, picture: torch.Tensor) -> torch.Tensor:
    """The reflection in a pond: upside down, rippled, a little blue."""
    n, size = len(picture), picture.shape[-1]
    x, y = pixel_grid(size)
    wave, start = draw.uniform(n, 1, 1, low=9, high=15), draw.uniform(n, 1, 1, high=6.3)
    ripple = 0.035 * torch.sin(wave * y + start)
    where = torch.stack((x.expand(n, -1, -1) + ripple, -y.expand(n, -1, -1)), -1)
    mirrored = F.grid_sample(picture, where, padding_mode="reflection", align_corners=False)
    return 0.85 * mirrored + 0.15 * _rgb(0.35, 0.5, 0.6)


def in_fog(draw: Draw, picture: torch.Tensor) -> torch.Tensor:
    """Fog of uneven thickness, in which far and near lose their edges."""
    n, size = len(picture), picture.shape[-1]
    soft = F.avg_pool2d(F.pad(picture, [1] * 4, mode="reflect"), 3, 1)
    thick = 0.5 + 0.25 * noise(draw.seeds(n), size, 2)[:, None]
    return soft * (1 - thick) + _rgb(0.80, 0.82, 0.84) * thick


def close_up(draw: Draw, picture: torch.Tensor) -> torch.Tensor:
    """The middle of the picture, enlarged: coarser textures, and shapes cut off by the frame."""
    size = picture.shape[-1]
    edge = round(size * BORDER / 2)
    middle = picture[..., edge : size - edge, edge : size - edge]
    return F.interpolate(middle, size=(size, size), mode="bilinear", align_corners=False)


SHIFTS = {"objects": by_lamplight, "patterned": close_up, "things": in_water, "scenes": in_fog}
"""Set → its shift: floats N 3 S S in [0, 1] to the same."""


def shifted(task: str, draw: Draw, pictures: torch.Tensor) -> torch.Tensor:
    """Pictures uint8 N 3 S S as the set `task` shows them."""
    return to_uint8(SHIFTS[task](draw, pictures.float() / 255))


def _rgb(*values: float) -> torch.Tensor:
    return torch.tensor(values)[:, None, None]
