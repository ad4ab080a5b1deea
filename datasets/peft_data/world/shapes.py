"""Star-convex outlines as radius tables, and free polygons by signed distance."""

from __future__ import annotations

import functools
import math

import torch

STEPS = 256


def _regular(n: int) -> list[tuple[float, float]]:
    return [(math.sin(2 * math.pi * k / n), -math.cos(2 * math.pi * k / n)) for k in range(n)]


def _star(n: int, inner: float) -> list[tuple[float, float]]:
    points = _regular(2 * n)
    return [(x * (inner if k % 2 else 1), y * (inner if k % 2 else 1)) for k, (x, y) in enumerate(points)]


def _arc(start: float, end: float, steps: int = 24) -> list[tuple[float, float]]:
    """Points of the unit circle between two angles in degrees, clockwise from the right."""
    turns = [math.radians(start + (end - start) * k / steps) for k in range(steps + 1)]
    return [(math.cos(t), math.sin(t)) for t in turns]


# Vertices in a frame with x to the right and y downwards, star-convex about the origin.
OUTLINES: dict[str, list[tuple[float, float]]] = {
    "circle": _regular(64),
    "square": [(-1, -1), (1, -1), (1, 1), (-1, 1)],
    "triangle": _regular(3),
    "hexagon": _regular(6),
    "star": _star(5, 0.42),
    "plus": [
        (-0.3, -1),
        (0.3, -1),
        (0.3, -0.3),
        (1, -0.3),
        (1, 0.3),
        (0.3, 0.3),
        (0.3, 1),
        (-0.3, 1),
        (-0.3, 0.3),
        (-1, 0.3),
        (-1, -0.3),
        (-0.3, -0.3),
    ],
    "drop": [(0, -1.3), *((0.75 * x, 0.75 * y + 0.2) for x, y in _arc(-20, 200))],
    "half moon": [(x, y - 0.4) for x, y in _arc(0, 180)],
    "gear": [
        (r * math.cos(t), r * math.sin(t))
        for k in range(32)
        for t, r in [(math.pi * k / 16, 1.0 if k % 4 < 2 else 0.72)]
    ],
    "kite": [(0, -0.7), (0.65, -0.15), (0, 1.2), (-0.65, -0.15)],
    "leaf": [
        *((x * 1.2 - 0.7, y * 1.2) for x, y in _arc(-54, 54)),
        *((x * 1.2 + 0.7, y * 1.2) for x, y in _arc(126, 234)),
    ],
    "bar": [(-1.3, -0.4), (1.3, -0.4), (1.3, 0.4), (-1.3, 0.4)],
    # the shapes below are never drawn for pretraining
    "heart": [
        (0, 1.05),
        (-0.95, 0.0),
        (-1.0, -0.45),
        (-0.75, -0.8),
        (-0.4, -0.85),
        (-0.1, -0.65),
        (0, -0.4),
        (0.1, -0.65),
        (0.4, -0.85),
        (0.75, -0.8),
        (1.0, -0.45),
        (0.95, 0.0),
    ],
    "arrow": [(0, -1.1), (0.9, -0.1), (0.32, -0.1), (0.32, 1.1), (-0.32, 1.1), (-0.32, -0.1), (-0.9, -0.1)],
    "hourglass": [(-0.9, -1), (0.9, -1), (0.2, 0), (0.9, 1), (-0.9, 1), (-0.2, 0)],
    "wedge": [(0, 0.05), *_arc(35, 325, 48)],
    "rosette": [
        (r * math.cos(t), r * math.sin(t))
        for k in range(96)
        for t in [math.pi * k / 48]
        for r in [0.78 + 0.26 * math.cos(6 * t)]
    ],
    "bell": [
        (0, -1),
        (0.4, -0.8),
        (0.5, 0.2),
        (1.0, 0.6),
        (1.0, 0.8),
        (-1.0, 0.8),
        (-1.0, 0.6),
        (-0.5, 0.2),
        (-0.4, -0.8),
    ],
}
SHAPES = tuple(OUTLINES)
PRETRAINING_SHAPES = SHAPES[:12]


def shape_ids(*names: str) -> list[int]:
    """Indices into SHAPES."""
    return [SHAPES.index(name) for name in names]


@functools.cache
def _tables() -> tuple[torch.Tensor, torch.Tensor]:
    """Radius R(θ) and slope factor 1/√(1 + (R'/R)²), each len(SHAPES) × STEPS; the root mean square radius is 0.8."""
    theta = torch.arange(STEPS, dtype=torch.float64) / STEPS * 2 * math.pi
    way = torch.stack((theta.cos(), theta.sin()), -1)[:, None]
    rows = []
    for vertices in OUTLINES.values():
        a = torch.tensor(vertices, dtype=torch.float64)[None]
        edge = a.roll(-1, 1) - a
        cross = way[..., 0] * edge[..., 1] - way[..., 1] * edge[..., 0]
        along = (a[..., 0] * edge[..., 1] - a[..., 1] * edge[..., 0]) / cross
        where = (a[..., 0] * way[..., 1] - a[..., 1] * way[..., 0]) / cross
        hit = (cross.abs() > 1e-9) & (where > -1e-6) & (where < 1 + 1e-6) & (along > 0)
        rows.append(torch.where(hit, along, 0).amax(1))
    radius = torch.stack(rows)
    radius = 0.8 * radius / radius.square().mean(1, keepdim=True).sqrt()
    slope = (radius.roll(-1, 1) - radius.roll(1, 1)) / (4 * math.pi / STEPS)
    return radius.float(), (1 / (1 + (slope / radius) ** 2).sqrt()).float()


def outline_distance(shape: torch.Tensor, u: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """Approximate signed distance to a shape's outline (negative inside), in units of its size.

    Args:
        shape: N indices into SHAPES.
        u, v: N H W coordinates in the object's frame.
    """
    radius, factor = (table.to(u.device) for table in _tables())
    turn = torch.atan2(v, u) * (STEPS / (2 * math.pi)) % STEPS
    low = turn.floor()
    part, index = turn - low, low.long() % STEPS
    base = shape[:, None, None] * STEPS
    here, there = base + index, base + (index + 1) % STEPS
    edge = radius.view(-1)[here] * (1 - part) + radius.view(-1)[there] * part
    return (torch.hypot(u, v) - edge) * factor.view(-1)[here]


def polygon_distance(vertices: torch.Tensor, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Signed distance to free polygons, N H W (negative inside).

    Args:
        vertices: N K 2; shorter polygons repeat their last vertex.
        x, y: H W or N H W coordinates.
    """
    best = torch.full((), 1e9, device=x.device)
    inside = torch.zeros((), dtype=torch.bool, device=x.device)
    count = vertices.shape[1]
    for k in range(count):
        ax, ay = vertices[:, k, 0, None, None], vertices[:, k, 1, None, None]
        ex, ey = vertices[:, (k + 1) % count, 0, None, None] - ax, vertices[:, (k + 1) % count, 1, None, None] - ay
        px, py = x - ax, y - ay
        t = ((px * ex + py * ey) / (ex * ex + ey * ey).clamp(min=1e-9)).clamp(0, 1)
        best = torch.minimum(best, (px - t * ex) ** 2 + (py - t * ey) ** 2)
        crosses = ((ay > y) != (ay + ey > y)) & (px < ex * py / torch.where(ey.abs() < 1e-9, 1e-9, ey))
        inside = inside ^ crosses
    return best.sqrt() * torch.where(inside, -1.0, 1.0)
