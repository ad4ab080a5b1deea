"""The natural group: what a thing is, whatever its colour, pose and surroundings. Seven tasks."""

from __future__ import annotations

import math

import torch

from .canvas import backdrop, finish, paint, soft
from .draw import Draw, apart, pixel_grid
from .figures import SPECIES, draw_figure, posed_view, turn
from .outlines import THINGS, thing_polygons
from .render import render
from .scene import FLAT_GROUNDS, Scene, make_scene
from .shapes import PRETRAINING_SHAPES, SHAPES, polygon_distance, shape_ids
from .textures import PRETRAINING_TEXTURES, TEXTURES, pattern
from .toys import DIGITS, glyphs

OBJECTS = ("square", "star", "plus", "half moon", "gear", "heart", "arrow", "hourglass", "wedge", "rosette")
FLOWERS = {  # petals, profile, depth of the cuts
    "trillium": (3, "round", 0.55),
    "clover": (4, "round", 0.5),
    "buttercup": (5, "round", 0.35),
    "periwinkle": (5, "notched", 0.4),
    "columbine": (5, "pointed", 0.5),
    "lily": (6, "pointed", 0.6),
    "anemone": (7, "round", 0.35),
    "cosmos": (8, "notched", 0.35),
    "daisy": (12, "round", 0.45),
    "sunflower": (14, "pointed", 0.35),
}
SURFACES = ("stripes", "checks", "dots", "rings", "bricks", "zigzag", "grain", "mesh", "cracks", "scales")


def cluttered(draw: Draw, main: torch.Tensor, distractors: int = 3) -> Scene:
    """Scenes whose largest, nearest object has the shape `main` (N indices into SHAPES), with smaller ones around."""
    n, slots = len(main), distractors + 1
    others = draw.choose(n, slots, among=range(len(PRETRAINING_SHAPES) if draw.pretraining else len(SHAPES)))
    kinds = len(PRETRAINING_TEXTURES) if draw.pretraining else len(TEXTURES)
    ground = draw.colour(n, low=0.15)
    colour = draw.colour(n, slots, low=0.15)
    colour[:, 0] = apart(ground, colour[:, 0], 0.25)
    size, x, y = draw.uniform(n, slots, low=0.1, high=0.22), *draw.uniform(2, n, slots, low=-1, high=1)
    size[:, 0], x[:, 0], y[:, 0] = draw.uniform(n, low=0.4, high=0.62), x[:, 0] * 0.3, y[:, 0] * 0.3
    z = draw.uniform(n, slots, low=2, high=4)
    z[:, 0] = 1.0
    return make_scene(
        draw.seeds(n),
        slots,
        shape=torch.cat((main[:, None], others[:, 1:]), 1),
        texture=draw.ints(n, slots, high=kinds) * draw.chance(n, slots, p=0.7),
        colour=colour,
        colour2=apart(colour, draw.colour(n, slots), 0.15),
        grain=draw.uniform(n, slots, low=2, high=5),
        size=size,
        aspect=draw.uniform(n, slots, low=0.75, high=1.33),
        angle=draw.uniform(n, slots, low=-0.6, high=0.6),
        x=x,
        y=y,
        z=z,
        present=torch.cat((torch.ones(n, 1, dtype=torch.bool), draw.chance(n, distractors, p=0.7)), 1),
        background=draw.choose(n, among=FLAT_GROUNDS),
        ground=ground,
        ground2=ground + (draw.colour(n) - ground) * draw.uniform(n, 1, high=0.5),
        ground_grain=draw.uniform(n, low=1.5, high=4),
        light=torch.cat((draw.uniform(n, 2, low=-1), draw.uniform(n, 1, high=0.35)), 1),
    )


def objects(draw: Draw, n: int, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The shape of the main object; half of the shapes were never seen in pretraining."""
    labels = draw.labels(n, len(OBJECTS))
    layers = render(cluttered(draw, torch.tensor(shape_ids(*OBJECTS))[labels]), size)
    return finish(draw, layers.picture), labels


def silhouettes(draw: Draw, n: int, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Plain outlines of everyday things, dark on light or light on dark."""
    labels = draw.labels(n, len(THINGS))
    ground, ink = draw.pair(n, gap=0.35)
    canvas = backdrop(draw, n, size, ground)
    distance = polygon_distance(thing_polygons(draw, labels, wobble=0.11, tilt=1.2), *pixel_grid(size))
    return finish(draw, paint(canvas, soft(distance, size), ink)), labels


def textures(draw: Draw, n: int, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Surfaces that fill the picture, in any two colours, scale and slant; four kinds are new."""
    labels = draw.labels(n, len(SURFACES))
    angle, repeats = draw.uniform(n, 1, 1, low=-math.pi, high=math.pi), draw.uniform(n, 1, 1, low=1.6, high=3.6)
    x, y = pixel_grid(size)
    lean = 1 + draw.uniform(n, 1, 1, low=-0.3, high=0.3) * x + draw.uniform(n, 1, 1, low=-0.3, high=0.3) * y
    move = draw.uniform(n, 2, 1, 1, low=-3, high=3)
    u = (x * angle.cos() + y * angle.sin()) * repeats / lean + move[:, 0]
    v = (y * angle.cos() - x * angle.sin()) * repeats / lean * draw.uniform(n, 1, 1, low=0.8, high=1.25) + move[:, 1]
    share = pattern(torch.tensor([TEXTURES.index(name) for name in SURFACES])[labels], u, v, draw.seeds(n))
    first, second = draw.pair(n, gap=0.2)
    canvas = paint(first[:, :, None, None].expand(n, 3, size, size), share, second)
    return finish(draw, canvas, grain=0.1), labels


def petals(
    draw: Draw, n: int, size: int, count: torch.Tensor, profile: torch.Tensor, cut: torch.Tensor
) -> torch.Tensor:
    """Flowers over leaves: petal count N, profile N (0 round, 1 pointed, 2 notched), depth of the cuts N."""
    ground = draw.colour(n, low=0.1)
    canvas = backdrop(draw, n, size, ground)
    leaf = make_scene(
        draw.seeds(n),
        5,
        shape=SHAPES.index("leaf"),
        size=draw.uniform(n, 5, low=0.2, high=0.5),
        x=draw.uniform(n, 5, low=-1),
        y=draw.uniform(n, 5, low=-1),
        angle=draw.uniform(n, 5, high=6.28),
        colour=apart(ground[:, None].expand(n, 5, 3), draw.colour(n, 5), 0.1),
        z=2.0,
    )
    seen = render(leaf, size)
    canvas = torch.where(seen.mask[:, None] > 0, seen.picture, canvas)
    x, y = pixel_grid(size)
    middle, radius = draw.uniform(n, 2, 1, 1, low=-0.25, high=0.25), draw.uniform(n, 1, 1, low=0.5, high=0.85)
    u, v = (x - middle[:, 0]) / radius, (y - middle[:, 1]) / radius
    tilt, squash = draw.uniform(n, 1, 1, low=-math.pi, high=math.pi), draw.uniform(n, 1, 1, low=1, high=1.5)
    u, v = u * tilt.cos() + v * tilt.sin(), (v * tilt.cos() - u * tilt.sin()) * squash
    r, turned = torch.hypot(u, v), torch.atan2(v, u) + draw.uniform(n, 1, 1, high=6.28)
    wave = (turned * count[:, None, None] / 2).cos().abs()
    kind, cut = profile[:, None, None], cut[:, None, None] * draw.uniform(n, 1, 1, low=0.85, high=1.15)
    lobes = torch.where(kind == 1, wave**2, torch.where(kind == 2, wave.sqrt() - 0.55 * (wave**8) * 0.6, wave.sqrt()))
    petal, heart = draw.pair(n, gap=0.2)
    petal = apart(ground, petal, 0.25)
    shade = 1 - draw.uniform(n, 1, 1, high=0.5) * (1 - r)
    cover = soft((r - (1 - cut + cut * lobes)) * radius / squash, size)
    canvas = canvas + (petal[:, :, None, None] * shade[:, None] - canvas) * cover[:, None]
    return paint(canvas, soft((r - draw.uniform(n, 1, 1, low=0.14, high=0.3)) * radius, size), heart)


def flowers(draw: Draw, n: int, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Kinds of flower that differ by number and form of petals, never by colour."""
    labels = draw.labels(n, len(FLOWERS))
    profiles = ("round", "pointed", "notched")
    table = torch.tensor([(count, profiles.index(form), cut) for count, form, cut in FLOWERS.values()])[labels]
    return finish(draw, petals(draw, n, size, *table.unbind(1))), labels


def creatures(draw: Draw, n: int, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Animals seen from the side and a little around, in any colours."""
    labels = draw.labels(n, len(SPECIES))
    return finish(
        draw, posed_view(draw, torch.tensor(list(SPECIES.values()))[labels], backdrop(draw, n, size))[0]
    ), labels


def street_digits(draw: Draw, n: int, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The middle digit of a house number, with parts of its neighbours in sight."""
    labels = draw.labels(n, 10)
    ground, ink = draw.pair(n, gap=0.25)
    canvas = backdrop(draw, n, size, ground)
    return finish(draw, signs(draw, canvas, DIGITS, labels, ink), grain=0.1), labels


def signs(draw: Draw, canvas: torch.Tensor, book: tuple, labels: torch.Tensor, ink: torch.Tensor) -> torch.Tensor:
    """The signs `labels` of a book of polylines in the middle of the canvas, and random ones at both sides."""
    n = len(labels)
    scale, slant = draw.uniform(n, low=0.42, high=0.7), draw.uniform(n, low=-0.25, high=0.25)
    view = turn(draw.uniform(n, low=-0.6, high=0.6), draw.uniform(n, low=-0.4, high=0.4), slant)
    middle, light = draw.uniform(n, 2, low=-0.15, high=0.15), torch.zeros(n, 3)
    for side in (-1, 1, 0):
        kind = draw.ints(n, high=len(book)) if side else labels
        shift = middle + side * scale[:, None] * draw.uniform(n, 1, low=1.4, high=2.1) * torch.tensor([1.0, 0.0])
        hidden = draw.chance(n, p=0.35) if side else torch.zeros(n, dtype=torch.bool)
        shift = torch.where(hidden[:, None], 9.0, shift)
        canvas = draw_figure(canvas, glyphs(draw, book, kind, ink), view, scale, shift, light)[0]
    return canvas
