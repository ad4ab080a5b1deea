"""Outlines of everyday things as polygons, x right and y down in about [-1, 1]."""

from __future__ import annotations

import torch

from .draw import Draw

Points = list[tuple[float, float]]

THINGS: dict[str, Points] = {
    "house": [
        (-0.8, 0.9),
        (-0.8, -0.1),
        (-1, -0.1),
        (0, -0.9),
        (0.4, -0.58),
        (0.4, -0.9),
        (0.6, -0.9),
        (0.6, -0.42),
        (1, -0.1),
        (0.8, -0.1),
        (0.8, 0.9),
    ],
    "fir": [
        (0, -1),
        (0.45, -0.35),
        (0.2, -0.35),
        (0.65, 0.2),
        (0.3, 0.2),
        (0.8, 0.7),
        (0.12, 0.7),
        (0.12, 1),
        (-0.12, 1),
        (-0.12, 0.7),
        (-0.8, 0.7),
        (-0.3, 0.2),
        (-0.65, 0.2),
        (-0.2, -0.35),
        (-0.45, -0.35),
    ],
    "fish": [
        (-1, -0.45),
        (-0.6, -0.1),
        (-0.1, -0.45),
        (0.45, -0.4),
        (0.85, -0.1),
        (0.95, 0.05),
        (0.6, 0.35),
        (0.1, 0.45),
        (-0.3, 0.3),
        (-0.6, 0.1),
        (-1, 0.5),
        (-0.85, 0.02),
    ],
    "sailboat": [
        (-0.9, 0.4),
        (-0.05, 0.4),
        (-0.05, 0.25),
        (-0.75, 0.25),
        (-0.05, -0.95),
        (0.05, -0.95),
        (0.6, 0.2),
        (0.05, 0.25),
        (0.05, 0.4),
        (0.9, 0.4),
        (0.6, 0.8),
        (-0.6, 0.8),
    ],
    "car": [
        (-1, 0.1),
        (-0.65, 0),
        (-0.4, -0.4),
        (0.3, -0.4),
        (0.6, 0),
        (1, 0.1),
        (1, 0.4),
        (0.75, 0.4),
        (0.6, 0.6),
        (0.4, 0.4),
        (-0.35, 0.4),
        (-0.55, 0.6),
        (-0.75, 0.4),
        (-1, 0.4),
    ],
    "cup": [
        (-0.7, -0.7),
        (0.5, -0.7),
        (0.5, -0.45),
        (0.95, -0.4),
        (0.95, 0.25),
        (0.45, 0.3),
        (0.47, 0.1),
        (0.75, 0.08),
        (0.75, -0.2),
        (0.5, -0.22),
        (0.4, 0.8),
        (-0.6, 0.8),
    ],
    "key": [
        (-1, -0.15),
        (-0.75, -0.4),
        (-0.45, -0.4),
        (-0.25, -0.1),
        (0.95, -0.1),
        (0.95, 0.35),
        (0.75, 0.35),
        (0.75, 0.1),
        (0.6, 0.1),
        (0.6, 0.3),
        (0.4, 0.3),
        (0.4, 0.1),
        (-0.25, 0.1),
        (-0.45, 0.4),
        (-0.75, 0.4),
        (-1, 0.15),
    ],
    "hammer": [
        (-0.8, -0.8),
        (0.5, -0.8),
        (0.9, -0.5),
        (0.15, -0.45),
        (0.15, 0.95),
        (-0.15, 0.95),
        (-0.15, -0.45),
        (-0.8, -0.4),
    ],
    "bottle": [
        (-0.15, -1),
        (0.15, -1),
        (0.15, -0.45),
        (0.4, -0.15),
        (0.4, 0.95),
        (-0.4, 0.95),
        (-0.4, -0.15),
        (-0.15, -0.45),
    ],
    "chair": [
        (-0.6, -1),
        (-0.4, -1),
        (-0.4, 0),
        (0.6, 0),
        (0.6, 0.95),
        (0.42, 0.95),
        (0.42, 0.25),
        (-0.42, 0.25),
        (-0.42, 0.95),
        (-0.6, 0.95),
    ],
    "cat head": [
        (-0.8, -0.95),
        (-0.35, -0.5),
        (0.35, -0.5),
        (0.8, -0.95),
        (0.85, 0.1),
        (0.5, 0.65),
        (0, 0.85),
        (-0.5, 0.65),
        (-0.85, 0.1),
    ],
    "mushroom": [
        (-0.95, 0.05),
        (-0.75, -0.5),
        (-0.3, -0.8),
        (0.3, -0.8),
        (0.75, -0.5),
        (0.95, 0.05),
        (0.25, 0.1),
        (0.3, 0.9),
        (-0.3, 0.9),
        (-0.25, 0.1),
    ],
}


def pretraining_polygons(count: int = 24) -> tuple[Points, ...]:
    """Invented angular outlines that are none of the things."""
    draw = Draw("pretrain", "polygons")
    radius, turns = draw.uniform(count, 14, low=0.25, high=1.05), draw.ints(count, low=6, high=15)
    lean = draw.uniform(count, 14, low=-0.3, high=0.3)
    out = []
    for k in range(count):
        n = int(turns[k])
        angle = (torch.arange(n) + 0.5 + lean[k, :n]) / n * 6.283185
        points = torch.stack((angle.cos(), angle.sin()), 1) * radius[k, :n, None]
        out.append([(float(x), float(y)) for x, y in points])
    return tuple(out)


def thing_polygons(
    draw: Draw, labels: torch.Tensor, book: tuple[Points, ...] | None = None, wobble: float = 0.07, tilt: float = 0.5
) -> torch.Tensor:
    """Vertices N K 2 on the canvas: wobbled, mirrored, stretched, turned and moved outlines of the given kinds."""
    book = tuple(THINGS.values()) if book is None else book
    longest, n = max(map(len, book)), len(labels)
    points = torch.tensor([[*p, *[p[-1]] * (longest - len(p))] for p in book])[labels]
    points = points + draw.uniform(n, longest, 2, low=-wobble, high=wobble)
    mirror = torch.where(draw.chance(n, 1, p=0.5), -1.0, 1.0)
    points = points * torch.cat((mirror * draw.uniform(n, 1, low=0.75, high=1.25), torch.ones(n, 1)), 1)[:, None]
    angle, shear = draw.uniform(n, low=-tilt, high=tilt), draw.uniform(n, low=-0.25, high=0.25)
    x, y = (points[..., 0] + shear[:, None] * points[..., 1]), points[..., 1]
    cos, sin = angle.cos()[:, None], angle.sin()[:, None]
    scale, shift = draw.uniform(n, 1, 1, low=0.5, high=0.8), draw.uniform(n, 1, 2, low=-0.22, high=0.22)
    return torch.stack((x * cos - y * sin, x * sin + y * cos), -1) * scale + shift
