"""The natural group's seventh task: kinds of place, told apart by layout and never by colour."""

from __future__ import annotations

from collections.abc import Callable

import torch

from .canvas import backdrop, finish, paint, ridge, soft
from .draw import Draw, apart, noise, pixel_grid
from .render import render
from .scene import make_scene
from .shapes import SHAPES, shape_ids
from .textures import TEXTURES, pattern


def _layer(draw: Draw, canvas: torch.Tensor, line: torch.Tensor, grain: float = 0.3) -> torch.Tensor:
    """Fills the canvas below a line (N 1 S heights, y on the canvas) with a drawn, mottled colour."""
    n, size = len(canvas), canvas.shape[-1]
    y = pixel_grid(size)[1]
    colour = apart(canvas.mean((2, 3)), draw.colour(n, low=0.15), 0.15)
    canvas = paint(canvas, soft(line - y, size), colour)
    mottle = (noise(draw.seeds(n), size, 9, octaves=2) - 0.5) * grain * draw.uniform(n, 1, 1)
    return torch.where((y > line)[:, None], canvas + mottle[:, None], canvas)


def _horizon(draw: Draw, n: int, low: float = -0.3, high: float = 0.3) -> torch.Tensor:
    return draw.uniform(n, 1, 1, low=low, high=high)


def mountains(draw: Draw, n: int, size: int) -> torch.Tensor:
    canvas, x = backdrop(draw, n, size), pixel_grid(size)[0][:1]
    for depth in (0, 1):
        line = _horizon(draw, n, -0.1, 0.3) + 0.4 * depth - 0.1 * ridge(draw.seeds(n), size, 9, 1)
        for steps, height in ((1.0, 0.5), (2.2, 0.22)):
            place = x * steps * draw.uniform(n, 1, 1, low=0.7, high=1.3) + draw.uniform(n, 1, 1)
            line = line - height * (1 - 4 * (place - place.round()).abs())
        canvas = _layer(draw, canvas, line)
    return canvas


def hills(draw: Draw, n: int, size: int) -> torch.Tensor:
    canvas = backdrop(draw, n, size)
    for depth in (0, 1, 2):
        canvas = _layer(
            draw, canvas, _horizon(draw, n, -0.2, 0.2) + 0.45 * depth - 0.5 * ridge(draw.seeds(n), size, 2, 1)
        )
    return canvas


def sea(draw: Draw, n: int, size: int) -> torch.Tensor:
    line = _horizon(draw, n)
    canvas = _layer(draw, backdrop(draw, n, size), line.expand(n, 1, size), 0.05)
    x, y = pixel_grid(size)
    seed, below = draw.seeds(n), (y - line).clamp(min=0)
    waves = pattern(torch.full((n,), TEXTURES.index("grain")), 3 / (below + 0.25), x * 2 + 0 * below, seed)
    foam = apart(canvas[:, :, -1].mean(2), draw.colour(n), 0.2)
    canvas = paint(canvas, waves * (below > 0.02) * draw.uniform(n, 1, 1, low=0.3, high=0.8), foam)
    middle = torch.stack((draw.uniform(n, low=-0.8, high=0.8), line[:, 0, 0] - draw.uniform(n, low=0.2, high=0.5)), 1)
    sun = torch.hypot(x - middle[:, :1, None], y - middle[:, 1:, None]) - 0.14
    return paint(canvas, soft(sun, size) * draw.chance(n, 1, 1, p=0.6), draw.colour(n))


def city(draw: Draw, n: int, size: int) -> torch.Tensor:
    canvas = backdrop(draw, n, size)
    x = pixel_grid(size)[0]
    for depth in (0, 1):
        blocks = draw.ints(n, 1, high=9, low=5)
        heights, jitter = draw.uniform(n, 12, low=-0.5, high=0.35), draw.uniform(n, 1, high=1.0)
        column = ((x[:1] + 1) / 2 * blocks + jitter).floor().long().clamp(max=11)
        canvas = _layer(draw, canvas, heights.gather(1, column)[:, None] + 0.35 * depth, 0.1)
    seed, (x, y) = draw.seeds(n), pixel_grid(size)
    windows = pattern(
        torch.full((n,), TEXTURES.index("mesh")),
        x * draw.uniform(n, 1, 1, low=5, high=7),
        y * draw.uniform(n, 1, 1, low=5, high=7),
        seed,
    )
    return paint(canvas, windows * (y > 0.35) * 0.7, apart(canvas[:, :, -1].mean(2), draw.colour(n), 0.25))


def forest(draw: Draw, n: int, size: int) -> torch.Tensor:
    canvas = _layer(draw, backdrop(draw, n, size), _horizon(draw, n, 0.2, 0.7).expand(n, 1, size))
    x, y = pixel_grid(size)
    for _ in range(7):
        bark, place = draw.colour(n, low=0.1), draw.uniform(n, 1, 1, low=-1, high=1)
        width = draw.uniform(n, 1, 1, low=0.03, high=0.1)
        trunk = torch.maximum(
            (x - place - 0.1 * y * draw.uniform(n, 1, 1, low=-1)).abs() - width,
            y - draw.uniform(n, 1, 1, low=0.3, high=1),
        )
        canvas = paint(canvas, soft(trunk, size), bark)
    crown = noise(draw.seeds(n), size, 7, octaves=2) * 0.7 - 0.55
    return paint(canvas, soft(y + 0.7 - crown - 0.35, size), draw.colour(n, low=0.15))


def furrows(draw: Draw, n: int, size: int) -> torch.Tensor:
    line = _horizon(draw, n, -0.5, 0.0)
    canvas = _layer(draw, backdrop(draw, n, size), line.expand(n, 1, size), 0.1)
    x, y = pixel_grid(size)
    below = (y - line).clamp(min=0.03)
    u = (x - draw.uniform(n, 1, 1, low=-0.7, high=0.7)) / below * draw.uniform(n, 1, 1, low=0.8, high=1.6)
    rows = pattern(torch.full((n,), TEXTURES.index("stripes")), u, u, draw.seeds(n))
    return paint(canvas, rows * (y > line), apart(canvas[:, :, -1].mean(2), draw.colour(n), 0.2))


def village(draw: Draw, n: int, size: int) -> torch.Tensor:
    canvas = _layer(draw, backdrop(draw, n, size), _horizon(draw, n, -0.3, 0.1).expand(n, 1, size))
    k = 4
    x = (torch.arange(k) + draw.uniform(n, k, low=0.2, high=0.8)) / k * 2 - 1
    y, big = draw.uniform(n, k, low=-0.1, high=0.6), draw.uniform(n, k, low=0.18, high=0.28)
    box, roof = shape_ids("square", "triangle")
    houses = make_scene(
        draw.seeds(n),
        2 * k,
        shape=torch.tensor([box] * k + [roof] * k),
        size=torch.cat((big, big * 1.05), 1),
        x=torch.cat((x, x), 1),
        y=torch.cat((y, y - big * 1.25), 1),
        z=torch.cat((2 - y, 1.99 - y), 1),
        colour=draw.colour(n, 2 * k),
        aspect=torch.cat((torch.ones(n, k), torch.full((n, k), 1.6)), 1),
        present=draw.chance(n, k, p=0.8).repeat(1, 2),
    )
    seen = render(houses, size)
    return torch.where(seen.mask[:, None] > 0, seen.picture, canvas)


def cave(draw: Draw, n: int, size: int) -> torch.Tensor:
    outside, rock = backdrop(draw, n, size), backdrop(draw, n, size)
    outside = _layer(draw, outside, _horizon(draw, n).expand(n, 1, size))
    x, y = pixel_grid(size)
    place = draw.uniform(n, 2, 1, 1, low=-0.3, high=0.3)
    ragged = noise(draw.seeds(n), size, 6, octaves=2) * 0.5
    hole = torch.hypot(x - place[:, 0], (y - place[:, 1]) * draw.uniform(n, 1, 1, low=0.7, high=1.2))
    cover = soft(hole + ragged - draw.uniform(n, 1, 1, low=0.7, high=0.9), size)[:, None]
    return rock + (outside - rock) * cover


def valley(draw: Draw, n: int, size: int) -> torch.Tensor:
    canvas, (x, y) = backdrop(draw, n, size), pixel_grid(size)
    middle, line = draw.uniform(n, 1, 1, low=-0.4, high=0.4), _horizon(draw, n, -0.2, 0.3)
    rough = ridge(draw.seeds(n), size, 6, 2, octaves=2) * 0.3
    canvas = _layer(draw, canvas, line - 1.2 * (x[:1] - middle).abs() + rough)
    below = (y - line).clamp(min=0)
    winding = middle + 0.5 * (below * 5 + draw.uniform(n, 1, 1, high=6.28)).sin() * below
    river = (x - winding).abs() - 0.04 - 0.4 * below
    return paint(canvas, soft(river, size) * (y > line), draw.colour(n, low=0.3))


def room(draw: Draw, n: int, size: int) -> torch.Tensor:
    canvas, (x, y) = backdrop(draw, n, size), pixel_grid(size)
    middle, half = draw.uniform(n, 2, 1, 1, low=-0.25, high=0.25), draw.uniform(n, 1, 1, low=0.3, high=0.55)
    dx, dy = x - middle[:, 0], y - middle[:, 1]
    for side, (across, along) in enumerate([(dx, dy), (dy, dx), (-dx, dy), (-dy, dx)]):
        wall = torch.maximum(along.abs() - across, half * (1 if side % 2 else 1.0) - across)
        canvas = paint(canvas, soft(wall, size), draw.colour(n, low=0.15))
    frame = torch.maximum((dx - 0.1).abs(), (dy + 0.05).abs()) - 0.5 * half
    return paint(canvas, soft(frame, size) * draw.chance(n, 1, 1, p=0.7), draw.colour(n))


PLACES: dict[str, Callable[[Draw, int, int], torch.Tensor]] = {
    f.__name__: f for f in (mountains, hills, sea, city, forest, furrows, village, cave, valley, room)
}


def by_kind(
    draw: Draw, labels: torch.Tensor, kinds: dict[str, Callable[[Draw, int, int], torch.Tensor]], size: int
) -> torch.Tensor:
    """One canvas a label, each drawn by its kind's function; N 3 S S."""
    out = torch.zeros(len(labels), 3, size, size)
    for index, make in enumerate(kinds.values()):
        chosen = (labels == index).nonzero()[:, 0]
        if len(chosen):
            out[chosen] = make(draw, len(chosen), size)
    return out


def clutter(draw: Draw, canvas: torch.Tensor) -> torch.Tensor:
    """A few small random things that say nothing about the place."""
    n, size = len(canvas), canvas.shape[-1]
    things = make_scene(
        draw.seeds(n),
        2,
        shape=draw.ints(n, 2, high=len(SHAPES)),
        size=draw.uniform(n, 2, low=0.06, high=0.16),
        x=draw.uniform(n, 2, low=-1),
        y=draw.uniform(n, 2, low=-0.2),
        colour=draw.colour(n, 2, low=0.1),
        present=draw.chance(n, 2, p=0.6),
    )
    seen = render(things, size)
    return torch.where(seen.mask[:, None] > 0, seen.picture, canvas)


def scenes(draw: Draw, n: int, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The kind of place, in any colours."""
    labels = draw.labels(n, len(PLACES))
    return finish(draw, clutter(draw, by_kind(draw, labels, PLACES, size)), grain=0.08), labels
