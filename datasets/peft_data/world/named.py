"""Pictures of things that have a name, a colour, a texture, a size and a place: what captions speak of.

Shapes and everyday things are drawn in one colour with a texture in another; animals in any colours. Around them are
flat grounds with small distractors, or landscapes.
"""

from __future__ import annotations

import functools
import math

import torch

from .canvas import finish
from .draw import Draw, apart, hsv, luminance, pixel_grid
from .figures import SPECIES, posed_view
from .landscapes import PLACES, by_kind, clutter
from .outlines import THINGS
from .render import render
from .scene import FLAT_GROUNDS, make_scene
from .shapes import SHAPES, outline_distance, polygon_distance
from .textures import TEXTURES, pattern
from .words import colour_name

SOLIDS = (*SHAPES, "ring", "cube")
NOUNS = (*SOLIDS, *THINGS, *SPECIES)
FIRST_ANIMAL = len(SOLIDS) + len(THINGS)
COLOURS = ("red", "orange", "yellow", "green", "teal", "blue", "purple", "pink", "brown", "black", "white", "grey")
GROUNDS = ("plain", "shaded", "cloudy", "striped", "chequered", "speckled", *PLACES)
"""Kinds of surroundings: the flat ones in the order of `scene.BACKGROUNDS`, then the landscapes."""
SIZES = ("small", "medium", "large")
COLUMNS = ("noun", "colour", "texture", "size", "ground", "ground colour")
"""What is known of a picture, in the order of its row of attributes; -1 where it does not apply."""


@functools.cache
def palette(pretraining: bool) -> tuple[torch.Tensor, ...]:
    """RGB values K 3 for each of COLOURS, of the pretraining hues or of the tasks' (see `draw.HUES`)."""
    draw = Draw("pretrain" if pretraining else "open", "palette")
    n = 1500
    hue = (draw.ints(n, high=12) + (0.0 if pretraining else 0.5) + 0.5 * draw.uniform(n)) / 12
    bright = hsv(hue, draw.uniform(n, low=0.5), draw.uniform(n, low=0.4))
    dull = hsv(hue[:600], draw.uniform(600, high=0.1), draw.uniform(600))
    colours = torch.cat((bright, dull))
    names = [colour_name(rgb) for rgb in colours]
    return tuple(colours[[k for k, name in enumerate(names) if name == wanted]] for wanted in COLOURS)


def paint_of(draw: Draw, colour: torch.Tensor) -> torch.Tensor:
    """RGB N 3 of the colours N (indices into COLOURS; -1: any)."""
    book = palette(draw.pretraining)
    wanted = torch.where(colour < 0, draw.ints(len(colour), high=len(COLOURS)), colour)
    pick = draw.uniform(len(colour))
    return torch.stack([book[c][int(p * len(book[c]))] for c, p in zip(wanted.tolist(), pick.tolist(), strict=True)])


def surroundings(draw: Draw, kind: torch.Tensor, paint: torch.Tensor, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Canvases N 3 S S of the kinds N (indices into GROUNDS), and their first colour N 3, unlike `paint` (N 3)."""
    n, slots = len(kind), 3
    flat = kind < len(FLAT_GROUNDS)
    ground = apart(paint, draw.colour(n, low=0.1), 0.22)
    colour = draw.colour(n, slots, low=0.15)
    scene = make_scene(
        draw.seeds(n),
        slots,
        shape=draw.ints(n, slots, high=len(SHAPES)),
        colour=colour,
        texture=draw.ints(n, slots, high=8) * draw.chance(n, slots, p=0.5),
        colour2=apart(colour, colour.flip(1), 0.15),
        size=draw.uniform(n, slots, low=0.08, high=0.16),
        x=draw.uniform(n, slots, low=-1),
        y=draw.uniform(n, slots, low=-1),
        angle=draw.uniform(n, slots, low=-0.6, high=0.6),
        z=2.0,
        present=draw.chance(n, slots, p=0.4),
        background=torch.where(flat, kind, 0),
        ground=ground,
        ground2=apart(ground, draw.colour(n), 0.12),
        ground_grain=draw.uniform(n, low=1.5, high=4),
        light=torch.cat((draw.uniform(n, 1, low=-1), torch.zeros(n, 2)), 1),
    )
    canvas = render(scene, size).picture
    wild = (~flat).nonzero()[:, 0]
    if len(wild):
        canvas[wild] = clutter(draw, by_kind(draw, kind[wild] - len(FLAT_GROUNDS), PLACES, size))
    return canvas, ground


def outline(noun: torch.Tensor, u: torch.Tensor, v: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Signed distance and brightness, N S S each, of solids and things in their own frame."""
    distance, shade = torch.empty_like(u), torch.ones_like(u)
    for index in noun.unique().tolist():
        at, name = (noun == index).nonzero()[:, 0], NOUNS[index]
        a, b = u[at], v[at]
        if name == "ring":
            distance[at] = (torch.hypot(a, b) - 0.66).abs() - 0.21
        elif name == "cube":
            distance[at] = outline_distance(torch.full_like(at, SHAPES.index("hexagon")), a, b)
            side = torch.atan2(b, a) / math.pi
            shade[at] = torch.where((side > -5 / 6) & (side < -1 / 6), 1.0, torch.where(side.abs() < 0.5, 0.45, 0.72))
        elif index < len(SHAPES):
            distance[at] = outline_distance(torch.full_like(at, index), a, b)
        else:
            points = torch.tensor(THINGS[name])
            distance[at] = polygon_distance(points.expand(len(at), -1, 2), a, b)
    return distance, shade


def paint_things(
    draw: Draw,
    canvas: torch.Tensor,
    noun: torch.Tensor,
    texture: torch.Tensor,
    paint: torch.Tensor,
    radius: torch.Tensor,
) -> torch.Tensor:
    """Solids and things (noun N) over the canvas, of a colour (N 3), a texture (N) and a radius (N)."""
    n, size = len(noun), canvas.shape[-1]
    (x, y), r = pixel_grid(size), radius[:, None, None]
    room = (0.85 - r).clamp(min=0.1) * 0.7
    px = (x - room * draw.uniform(n, 1, 1, low=-1)) / r
    py = (y - room * draw.uniform(n, 1, 1, low=-1)) / r
    angle, stretch = draw.uniform(n, 1, 1, low=-0.45, high=0.45), draw.uniform(n, 1, 1, low=0.87, high=1.15)
    u = (px * angle.cos() + py * angle.sin()) / stretch
    v = (py * angle.cos() - px * angle.sin()) * stretch
    distance, shade = outline(noun, u, v)
    grain = draw.uniform(n, 1, 1, low=1.1, high=2.2) * (0.55 + r)
    share = pattern(texture, u * grain, v * grain, draw.seeds(n))[:, None]
    second = apart(paint, draw.colour(n), 0.3)
    tint = paint[:, :, None, None] * (1 - share) + second[:, :, None, None] * share
    cover = (0.5 - distance * r * size / 2).clamp(0, 1)[:, None]
    return canvas + (tint * shade[:, None] - canvas) * cover


def draw_named(draw: Draw, known: torch.Tensor, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Pictures of what `known` asks for.

    Args:
        draw: where chance comes from; its palette is that of the pictures.
        known: int64 N 6, see COLUMNS. Noun and ground must be given (0 or more); colour, texture and size are drawn
            where they are -1. The ground's colour is always drawn.
        size: height and width S in pixels.

    Returns:
        pictures uint8 N 3 S S and their attributes int64 N 6; animals have neither colour, texture nor size, a
        landscape has no ground colour.
    """
    noun, colour, texture, scale, ground, _ = known.unbind(1)
    n = len(noun)
    colour = torch.where(colour < 0, draw.ints(n, high=len(COLOURS)), colour)
    texture = torch.where(texture < 0, draw.ints(n, high=len(TEXTURES)) * draw.chance(n, p=0.6), texture)
    scale = torch.where(scale < 0, draw.ints(n, high=len(SIZES)), scale)
    low = torch.tensor([0.32, 0.44, 0.56])[scale]
    radius = low + 0.1 * draw.uniform(n)
    paint = paint_of(draw, colour)
    canvas, first = surroundings(draw, ground, paint, size)
    animal = noun >= FIRST_ANIMAL
    rows, wild = animal.nonzero()[:, 0], ground >= len(FLAT_GROUNDS)
    if len(rows):
        plans = torch.tensor(list(SPECIES.values()))[noun[rows] - FIRST_ANIMAL]
        canvas[rows] = posed_view(draw, plans, canvas[rows])[0]
    rows = (~animal).nonzero()[:, 0]
    if len(rows):
        on = canvas[rows].mean((2, 3))
        seen = torch.where((luminance(on) - luminance(paint[rows])).abs()[:, None] < 0.15, on * 0.6, on)
        under = canvas[rows] * (seen / on.clamp(min=1e-3)).clamp(0, 1)[:, :, None, None]
        canvas[rows] = paint_things(draw, under, noun[rows], texture[rows], paint[rows], radius[rows])
    named = torch.tensor([COLOURS.index(colour_name(rgb)) for rgb in first])
    none = torch.full_like(noun, -1)
    attributes = torch.stack(
        (
            noun,
            torch.where(animal, none, colour),
            torch.where(animal, none, texture),
            torch.where(animal, none, scale),
            ground,
            torch.where(wild, none, named),
        ),
        1,
    )
    return finish(draw, canvas, grain=0.05), attributes
