"""The structured group: how many, how far, where, which way. Eight tasks."""

from __future__ import annotations

import math

import torch

from .canvas import backdrop, finish
from .draw import Draw, apart
from .figures import draw_figure, lights, turn
from .render import render
from .scene import BACKGROUNDS, Scene, make_scene
from .shapes import SHAPES, shape_ids
from .textures import TEXTURES
from .toys import TOYS, toys

HALL, STREET = BACKGROUNDS.index("hall"), BACKGROUNDS.index("street")
SOLIDS = ("circle", "square", "triangle", "hexagon", "drop", "star")


def hall(draw: Draw, n: int, slots: int, **fields: torch.Tensor) -> Scene:
    """Rooms in perspective with standing things of random form, colour and texture; fields override the draws."""
    ground, ground2 = draw.pair(n, gap=0.1)
    colour = apart(ground2[:, None].expand(n, slots, 3), draw.colour(n, slots, low=0.15), 0.15)
    camera = torch.stack(
        (draw.uniform(n, low=1.8, high=2.0), torch.zeros(n), torch.zeros(n), draw.uniform(n, low=-0.5, high=-0.25)), 1
    )
    given = dict(
        shape=draw.choose(n, slots, among=shape_ids(*SOLIDS)),
        colour=colour,
        colour2=apart(colour, draw.colour(n, slots), 0.2),
        texture=draw.ints(n, slots, high=len(TEXTURES)) * draw.chance(n, slots, p=0.4),
        grain=draw.uniform(n, slots, low=2, high=4),
        size=draw.uniform(n, slots, low=0.2, high=0.4),
        background=HALL,
        angle=draw.uniform(n, slots, low=-0.2, high=0.2),
        camera=camera,
        ground=ground,
        ground2=ground2,
        light=torch.cat((draw.uniform(n, 2, low=-0.7, high=0.7), draw.uniform(n, 1, low=0.2, high=0.6)), 1),
    )
    return make_scene(draw.seeds(n), slots, **(given | fields))


def spread(draw: Draw, n: int, slots: int, near: float, far: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Places x, z (N M each) on the floor, in the camera's sight, no two of them too near on the picture."""
    columns = draw.uniform(n, slots).argsort(1)
    side = (columns + draw.uniform(n, slots, low=0.15, high=0.85)) / slots * 2 - 1
    z = draw.uniform(n, slots, low=near, high=far)
    return side * z * 0.45, z


def count(draw: Draw, n: int, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """How many things stand in the room: 1 to 8."""
    labels = draw.labels(n, 8)
    x, z = spread(draw, n, 8, 1.6, 3.6)
    present = draw.uniform(n, 8).argsort(1).argsort(1) <= labels[:, None]
    each = draw.uniform(n, 1, low=0.16, high=0.26) * draw.uniform(n, 8, low=0.85, high=1.15)
    return finish(draw, render(hall(draw, n, 8, x=x, z=z, present=present, size=each), size).picture), labels


def distance(draw: Draw, n: int, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """How far the nearest thing is, in six bins; things differ in size, so size alone does not tell."""
    labels = draw.labels(n, 6)
    x, z = spread(draw, n, 6, 0.0, 1.0)
    nearest = 1.5 + 0.5 * (labels + draw.uniform(n, low=0.15, high=0.85))
    depth = nearest[:, None] + z * (5.0 - nearest[:, None])
    depth[:, 0] = nearest
    x = x / z.clamp(min=1e-3) * depth
    present = draw.chance(n, 6, p=0.6)
    present[:, 0] = True
    each = draw.uniform(n, 6, low=0.2, high=0.5)
    return finish(draw, render(hall(draw, n, 6, x=x, z=depth, present=present, size=each), size).picture), labels


def arena(draw: Draw, n: int, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The nearest thing: wanted (round) or unwanted (angular), and near, halfway or far; six classes."""
    labels = draw.labels(n, 6)
    bad, bin_ = labels // 3, labels % 3
    nearest = 1.5 + 0.9 * (bin_ + draw.uniform(n, low=0.1, high=0.9))
    x, z = spread(draw, n, 5, 0.0, 1.0)
    depth = nearest[:, None] + 0.3 + z * (5.4 - nearest[:, None])
    depth[:, 0] = nearest
    x = x / z.clamp(min=1e-3) * depth * 0.9
    wanted = draw.choose(n, 5, among=shape_ids("circle", "drop", "half moon"))
    unwanted = draw.choose(n, 5, among=shape_ids("square", "triangle", "star"))
    unfit = draw.chance(n, 5, p=0.5)
    unfit[:, 0] = bad.bool()
    present = draw.chance(n, 5, p=0.6)
    present[:, 0] = True
    scene = hall(
        draw,
        n,
        5,
        x=x,
        z=depth,
        present=present,
        shape=torch.where(unfit, unwanted, wanted),
        size=draw.uniform(n, 5, low=0.28, high=0.5),
    )
    return finish(draw, render(scene, size).picture), labels


def road(draw: Draw, n: int, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The nearest vehicle on one's own side of the road: near, halfway, far, or none (as KITTI's four bins)."""
    labels = draw.labels(n, 4)
    ahead = 1.6 + 1.2 * (labels + draw.uniform(n, low=0.1, high=0.9))
    other, aside = draw.uniform(n, 2, low=1.6, high=6), draw.uniform(n, 4, low=1.6, high=6)
    z = torch.cat((ahead[:, None], other, aside), 1)
    lane = torch.cat((draw.uniform(n, 1, low=0.35, high=0.65), draw.uniform(n, 2, low=-0.75, high=-0.45)), 1)
    verge = draw.uniform(n, 4, low=1.3, high=2.2) * torch.where(draw.chance(n, 4, p=0.5), -1.0, 1.0)
    present = torch.cat(((labels < 3)[:, None], draw.chance(n, 2, p=0.5), draw.chance(n, 4, p=0.7)), 1)
    box, tree = SHAPES.index("square"), draw.choose(n, 4, among=shape_ids("circle", "triangle", "drop"))
    scene = hall(
        draw,
        n,
        7,
        x=torch.cat((lane, verge), 1),
        z=z,
        present=present,
        background=torch.full((n,), STREET),
        shape=torch.cat((torch.full((n, 3), box), tree), 1),
        angle=torch.zeros(n, 7),
        aspect=torch.cat((draw.uniform(n, 3, low=1.0, high=1.8), draw.uniform(n, 4, low=0.4, high=0.9)), 1),
        size=torch.cat((draw.uniform(n, 3, low=0.22, high=0.36), draw.uniform(n, 4, low=0.3, high=0.6)), 1),
    )
    return finish(draw, render(scene, size).picture), labels


def _sprite(draw: Draw, n: int, among: list[int], **fields: torch.Tensor) -> Scene:
    ground, ink = draw.pair(n, gap=0.3)
    tint = ground + (draw.colour(n) - ground) * 0.3
    given = dict(
        shape=draw.choose(n, 1, among=among),
        size=draw.uniform(n, 1, low=0.16, high=0.34),
        colour=ink[:, None],
        colour2=ink[:, None],
        angle=draw.uniform(n, 1, high=2 * math.pi),
        background=draw.choose(n, among=(0, 1, 2, 5)),
        x=draw.uniform(n, 1, low=-0.62, high=0.62),
        y=draw.uniform(n, 1, low=-0.62, high=0.62),
        ground=ground,
        ground2=tint,
        ground_grain=draw.uniform(n, low=2, high=4),
    )
    return make_scene(draw.seeds(n), 1, **(given | fields))


def position(draw: Draw, n: int, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Where a sprite is from left to right: 16 columns."""
    labels = draw.labels(n, 16)
    x = ((labels + draw.uniform(n, low=0.1, high=0.9)) / 16 * 2 - 1) * 0.75
    scene = _sprite(draw, n, shape_ids("square", "circle", "heart", "arrow", "star", "leaf"), x=x[:, None])
    return finish(draw, render(scene, size).picture), labels


def orientation(draw: Draw, n: int, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Which way a sprite without symmetry points: 16 directions."""
    labels = draw.labels(n, 16)
    angle = (labels + draw.uniform(n, low=0.1, high=0.9)) / 16 * 2 * math.pi
    near = draw.uniform(2, n, 1, low=-0.25, high=0.25)
    scene = _sprite(
        draw,
        n,
        shape_ids("heart", "arrow", "drop"),
        angle=angle[:, None],
        x=near[0],
        y=near[1],
        size=draw.uniform(n, 1, low=0.4, high=0.6),
    )
    return finish(draw, render(scene, size).picture), labels


def toy_layers(
    draw: Draw, kind: torch.Tensor, size: int, azimuth: torch.Tensor, elevation: torch.Tensor, lamp: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    """Toys of the given kinds seen from azimuth and elevation (N each, radians); see draw_figure.

    With `lamp` the light stays with the toy, high at its front and one side; otherwise it moves with the viewer.
    """
    n = len(kind)
    figure, view = toys(draw, kind), turn(azimuth, elevation, torch.zeros(n))
    shift = draw.uniform(n, 2, low=-0.15, high=0.15)
    canvas, scale, light = backdrop(draw, n, size), draw.uniform(n, low=0.65, high=0.85), lights(draw, n)
    if lamp:
        light = (view @ (light.abs() * torch.tensor([1.0, 1.6, 1.0]))[..., None])[..., 0]
    return draw_figure(canvas, figure, view, scale, shift, light)


def _toy(draw: Draw, n: int, size: int, azimuth: torch.Tensor, elevation: torch.Tensor) -> torch.Tensor:
    return finish(draw, toy_layers(draw, draw.ints(n, high=len(TOYS)), size, azimuth, elevation, lamp=True)[0])


def azimuth(draw: Draw, n: int, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """From which of 18 sides a toy is seen."""
    labels = draw.labels(n, 18)
    angle = (labels + draw.uniform(n, low=0.1, high=0.9)) / 18 * 2 * math.pi
    return _toy(draw, n, size, angle, draw.uniform(n, low=0.3, high=0.7)), labels


def elevation(draw: Draw, n: int, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """From which of nine heights a toy is seen, from level to nearly above, always more or less from the side."""
    labels = draw.labels(n, 9)
    angle = (labels + draw.uniform(n, low=0.1, high=0.9)) / 9 * 1.4
    return _toy(draw, n, size, draw.uniform(n, low=-0.9, high=0.9), angle), labels
