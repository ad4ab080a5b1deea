"""The specialised group, second part: land use and buildings from above, turned any way, in any two colours."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

from .canvas import backdrop, finish, paint, soft
from .draw import Draw, noise, pixel_grid
from .landscapes import by_kind
from .textures import TEXTURES, pattern

Plane = tuple[torch.Tensor, torch.Tensor]


def _plane(draw: Draw, n: int, size: int, spread: float = 0.25) -> Plane:
    """Coordinates N S S of a map turned and moved at random under the camera."""
    (x, y), angle = pixel_grid(size), draw.uniform(n, 1, 1, high=2 * math.pi)
    move, zoom = draw.uniform(n, 2, 1, 1, low=-spread, high=spread), draw.uniform(n, 1, 1, low=0.85, high=1.2)
    x, y = x * zoom + move[:, 0], y * zoom + move[:, 1]
    return x * angle.cos() + y * angle.sin(), y * angle.cos() - x * angle.sin()


def _rows(draw: Draw, u: torch.Tensor, v: torch.Tensor, kind: str) -> torch.Tensor:
    return pattern(torch.full((len(u),), TEXTURES.index(kind)), u, v, draw.seeds(len(u)))


def _flat(inner: Callable[[Draw, Plane, int, int], torch.Tensor]) -> Callable[[Draw, int, int], torch.Tensor]:
    """A kind of map: `inner` gives the cover of what is special, which is painted over mottled ground."""

    def make(draw: Draw, n: int, size: int) -> torch.Tensor:
        ground, ink = draw.pair(n, gap=0.25)
        canvas = backdrop(draw, n, size, ground)
        return paint(canvas, inner(draw, _plane(draw, n, size), n, size), ink)

    return make


def _crops(draw: Draw, at: Plane, n: int, size: int) -> torch.Tensor:
    u, v = at
    plot = (u > draw.uniform(n, 1, 1, low=-0.3, high=0.3)).long() * 2
    plot = plot + (v > draw.uniform(n, 1, 1, low=-0.3, high=0.3)).long()
    repeats, tone = draw.uniform(n, 4, low=2.5, high=5), draw.uniform(n, 4, low=0.3, high=1)
    steps = repeats.gather(1, plot.flatten(1)).view_as(u)
    tones = tone.gather(1, plot.flatten(1)).view_as(u)
    return _rows(draw, torch.where(plot % 3 == 0, u, v) * steps, u, "stripes") * tones


def _orchard(draw: Draw, at: Plane, n: int, size: int) -> torch.Tensor:
    step = draw.uniform(n, 1, 1, low=2.2, high=3.5)
    return _rows(draw, at[0] * step, at[1] * step, "dots")


def _wood(draw: Draw, at: Plane, n: int, size: int) -> torch.Tensor:
    return ((noise(draw.seeds(n), size, 10, octaves=2) - 0.5) * 4 + 0.5).clamp(0, 1)


def _pasture(draw: Draw, at: Plane, n: int, size: int) -> torch.Tensor:
    return ((noise(draw.seeds(n), size, 2) - 0.5) * 3 + 0.5).clamp(0, 1)


def _boxes(draw: Draw, at: Plane, n: int, size: int, each: float, step: float, share: float) -> torch.Tensor:
    u, v = at[0] / step, at[1] / step
    column, row = u.round(), v.round()
    taken = draw.chance(n, 13, 13, p=share)
    rows = torch.arange(n)[:, None, None]
    here = taken[rows, column.long().clamp(-6, 6) + 6, row.long().clamp(-6, 6) + 6]
    wide = draw.uniform(n, 1, 1, low=0.8, high=1.3)
    return (
        soft(torch.maximum((u - column).abs() * step - each * wide, (v - row).abs() * step - each / wide), size) * here
    )


def _housing(draw: Draw, at: Plane, n: int, size: int) -> torch.Tensor:
    return _boxes(draw, at, n, size, 0.1, 0.34, 0.8)


def _industry(draw: Draw, at: Plane, n: int, size: int) -> torch.Tensor:
    return _boxes(draw, at, n, size, 0.3, 0.85, 0.85)


def _river(draw: Draw, at: Plane, n: int, size: int) -> torch.Tensor:
    bend, phase = draw.uniform(n, 1, 1, low=0.25, high=0.45), draw.uniform(n, 1, 1, high=6.28)
    line = at[1] - bend * (at[0] * draw.uniform(n, 1, 1, low=2.5, high=4) + phase).sin()
    return soft(line.abs() - draw.uniform(n, 1, 1, low=0.1, high=0.2), size)


def _lake(draw: Draw, at: Plane, n: int, size: int) -> torch.Tensor:
    shore = noise(draw.seeds(n), size, 4, octaves=2) * 0.9
    return soft(torch.hypot(*at) + shore - draw.uniform(n, 1, 1, low=0.8, high=1.1), size)


def _highway(draw: Draw, at: Plane, n: int, size: int) -> torch.Tensor:
    half = draw.uniform(n, 1, 1, low=0.12, high=0.22)
    return soft(at[1].abs() - half, size) * (1 - soft(at[1].abs() - 0.03, size))


def _meadow(draw: Draw, at: Plane, n: int, size: int) -> torch.Tensor:
    step = draw.uniform(n, 1, 1, low=1.6, high=2.4)
    return _rows(draw, at[0] * step, at[1] * step, "cracks")


def _crossroads(draw: Draw, at: Plane, n: int, size: int) -> torch.Tensor:
    half = draw.uniform(n, 1, 1, low=0.08, high=0.16)
    return soft(torch.minimum(at[0].abs(), at[1].abs()) - half, size)


def _junction(draw: Draw, at: Plane, n: int, size: int) -> torch.Tensor:
    half = draw.uniform(n, 1, 1, low=0.08, high=0.16)
    stem = torch.maximum(at[0].abs() - half, -at[1])
    return soft(torch.minimum(stem, at[1].abs() - half), size)


def _roundabout(draw: Draw, at: Plane, n: int, size: int) -> torch.Tensor:
    half, ring = draw.uniform(n, 1, 1, low=0.07, high=0.11), draw.uniform(n, 1, 1, low=0.35, high=0.5)
    far = torch.hypot(*at)
    arms = torch.maximum(torch.minimum(at[0].abs(), at[1].abs()) - half, ring - far)
    return soft(torch.minimum((far - ring).abs() - half, arms), size)


def _bend(draw: Draw, at: Plane, n: int, size: int) -> torch.Tensor:
    far = torch.hypot(at[0] - 0.8, at[1] - 0.8)
    return soft(
        (far - draw.uniform(n, 1, 1, low=0.7, high=1.0)).abs() - draw.uniform(n, 1, 1, low=0.08, high=0.16), size
    )


def _bridge(draw: Draw, at: Plane, n: int, size: int) -> torch.Tensor:
    water = soft(at[0].abs() - draw.uniform(n, 1, 1, low=0.4, high=0.6), size)
    return water * (1 - soft(at[1].abs() - draw.uniform(n, 1, 1, low=0.07, high=0.12), size))


def _stadium(draw: Draw, at: Plane, n: int, size: int) -> torch.Tensor:
    far = torch.hypot((at[0].abs() - 0.3).clamp(min=0), at[1])
    return soft((far - 0.45).abs() - draw.uniform(n, 1, 1, low=0.05, high=0.1), size)


def _parking(draw: Draw, at: Plane, n: int, size: int) -> torch.Tensor:
    across = ((at[0] / 0.16).round() * 0.16 - at[0]).abs() - 0.05
    spaced = torch.maximum(across, ((at[1] / 0.5).round() * 0.5 - at[1]).abs() - 0.13)
    return soft(spaced, size)


def _tanks(draw: Draw, at: Plane, n: int, size: int) -> torch.Tensor:
    step = 0.55
    near = [(at[k] - (at[k] / step).round() * step) for k in (0, 1)]
    inside = torch.maximum(at[0].abs(), at[1].abs()) < draw.uniform(n, 1, 1, low=0.85, high=1.2)
    return soft(torch.hypot(*near) - draw.uniform(n, 1, 1, low=0.17, high=0.24), size) * inside


def _court(draw: Draw, at: Plane, n: int, size: int) -> torch.Tensor:
    width, length = draw.uniform(n, 1, 1, low=0.35, high=0.45), draw.uniform(n, 1, 1, low=0.7, high=0.85)
    box = torch.maximum(at[0].abs() - length, at[1].abs() - width)
    lines = torch.minimum(box.abs(), torch.maximum(at[0].abs(), box)) - 0.045
    return soft(torch.minimum(lines, (torch.hypot(*at) - 0.18).abs() - 0.03), size)


def _harbour(draw: Draw, at: Plane, n: int, size: int) -> torch.Tensor:
    quay = at[1] + 0.4
    across = ((at[0] / 0.4).round() * 0.4 - at[0]).abs() - 0.07
    piers = torch.maximum(across, at[1].abs() - draw.uniform(n, 1, 1, low=0.4, high=0.7))
    return soft(torch.minimum(quay, piers), size)


LANDS = {
    f.__name__[1:]: _flat(f)
    for f in (_crops, _orchard, _wood, _pasture, _housing, _industry, _river, _lake, _highway, _meadow)
}
PLACES = {
    f.__name__[1:]: _flat(f)
    for f in (_crossroads, _junction, _roundabout, _bend, _bridge, _stadium, _parking, _tanks, _court, _harbour)
}


def fields(draw: Draw, n: int, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """What land is used for, from far above."""
    labels = draw.labels(n, len(LANDS))
    return finish(draw, by_kind(draw, labels, LANDS, size), grain=0.12), labels


def aerial(draw: Draw, n: int, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """What was built, from above and turned any way."""
    labels = draw.labels(n, len(PLACES))
    return finish(draw, by_kind(draw, labels, PLACES, size), grain=0.12), labels
