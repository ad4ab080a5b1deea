"""Moving pictures of the drawn world: four tasks that no single frame solves, and two that any frame does.

Of the former, every frame is drawn so that frames of all classes look alike one by one. For axis the frames tell together,
in any order; for direction, speed and order only their order does: a clip of one direction played backwards is a clip of
the opposite one.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from .draw import Draw, apart
from .render import render
from .scene import BACKGROUNDS, FLAT_GROUNDS, Scene, make_scene
from .shapes import shape_ids
from .textures import TEXTURES

FRAMES, RATE = 16, 8
"""Frames of a clip, and frames a second: two seconds."""

SHAPES = ("circle", "square", "triangle", "star", "plus", "bar")
AXES = ("still", "horizontal", "vertical")
DIRECTIONS = ("right", "down", "left", "up")
SPEEDS = ("slow", "medium", "fast")
ORDERS = ("circle first", "square first")
GROUNDS = tuple(BACKGROUNDS[index] for index in FLAT_GROUNDS)
CLASSES: dict[str, tuple[str, ...]] = {
    "axis": AXES,
    "direction": DIRECTIONS,
    "speed": SPEEDS,
    "order": ORDERS,
    "shape": SHAPES,
    "ground": GROUNDS,
}
ABOUT = {
    "axis": "along which axis a thing moves, if at all: no frame tells",
    "direction": "which way a thing moves: no frame tells",
    "speed": "how fast a thing moves there and back: no frame tells",
    "order": "which of two things shows up first: no frame tells",
    "shape": "what moves: any frame tells",
    "ground": "on what ground a thing moves: any frame tells",
}


def still(draw: Draw, n: int, slots: int, **fields: torch.Tensor | float) -> Scene:
    """N scenes with things of random form on random flat ground; fields override the draws."""
    ground, ground2 = draw.pair(n, gap=0.1)
    between = (ground + ground2)[:, None].expand(n, slots, 3) / 2
    colour = apart(between, draw.colour(n, slots, low=0.15), 0.35)
    given = dict(
        shape=draw.choose(n, slots, among=shape_ids(*SHAPES)),
        colour=colour,
        colour2=apart(colour, draw.colour(n, slots), 0.15),
        texture=draw.ints(n, slots, high=len(TEXTURES)) * draw.chance(n, slots, p=0.25),
        grain=draw.uniform(n, slots, low=2, high=4),
        size=draw.uniform(n, slots, low=0.26, high=0.36),
        angle=draw.uniform(n, slots, low=-0.3, high=0.3),
        background=draw.choose(n, among=FLAT_GROUNDS),
        ground=ground,
        ground2=ground2,
        ground_grain=draw.uniform(n, low=1.5, high=4),
    )
    return make_scene(draw.seeds(n), slots, **(given | fields))


def filmed(scenes: Callable[[float], Scene], size: int) -> torch.Tensor:
    """uint8 N T 3 S S of the scenes at T times spread evenly over [0, 1]."""
    return torch.stack([render(scenes(t / (FRAMES - 1)), size).uint8 for t in range(FRAMES)], 1)


def passing(draw: Draw, n: int, way: torch.Tensor, length: torch.Tensor, **fields: torch.Tensor) -> Scene:
    """Things that cover a path of `length` (N) in the direction `way` (N, radians) within one unit of time; the middle of
    the path is drawn so that the path stays within the picture."""
    step = torch.stack((way.cos(), way.sin()), -1) * length[:, None]
    room = (0.85 - step.abs() / 2).clamp(min=0.05)
    start = (draw.uniform(n, 2, low=-1, high=1) * room) - step / 2
    velocity = torch.cat((step, torch.zeros(n, 2)), -1)[:, None]
    return still(draw, n, 1, **({"x": start[:, :1], "y": start[:, 1:], "velocity": velocity} | fields))


def axis(draw: Draw, n: int, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A thing stands, moves left or right, or moves up or down. Each has a path along both axes and stays at one of its
    points where it does not move, so that its place in a frame is distributed alike in all classes."""
    labels = draw.labels(n, len(AXES))
    length, sign = draw.uniform(n, 2, low=0.6, high=1.2), 1 - 2 * draw.chance(n, 2, p=0.5)
    middle, rest = draw.uniform(n, 2, low=-1, high=1) * (0.85 - length / 2), draw.uniform(n, 2)
    moves = labels[:, None] == torch.arange(1, 3)
    scene = still(draw, n, 1)

    def at(time: float) -> Scene:
        place = middle + length * sign * (torch.where(moves, time, rest) - 0.5)
        return scene.replace(x=place[:, :1], y=place[:, 1:])

    return filmed(at, size), labels


def direction(draw: Draw, n: int, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A thing moves right, down, left or up."""
    labels = draw.labels(n, len(DIRECTIONS))
    scene = passing(draw, n, labels * (torch.pi / 2), draw.uniform(n, low=0.6, high=1.2))
    return filmed(scene.at, size), labels


def speed(draw: Draw, n: int, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A thing goes there and back on one path once, twice or three times; the path's length tells nothing."""
    labels = draw.labels(n, len(SPEEDS))
    times, phase = labels + 1.0, draw.uniform(n)
    scene = passing(draw, n, draw.uniform(n, high=2 * torch.pi), draw.uniform(n, low=0.8, high=1.2))
    way, start = scene.velocity[:, 0, :2], torch.cat((scene.x, scene.y), 1)

    def at(time: float) -> Scene:
        swing = 0.5 - 0.5 * torch.cos(2 * torch.pi * (times * time + phase))
        place = start + way * swing[:, None]
        return scene.replace(x=place[:, :1], y=place[:, 1:])

    return filmed(at, size), labels


def order(draw: Draw, n: int, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A circle and a square show up one after the other, each for as long, at places that tell nothing."""
    labels = draw.labels(n, len(ORDERS))
    begins = draw.uniform(n, low=0.05, high=0.2)
    lasts = draw.uniform(n, low=0.25, high=0.35)
    later = begins + lasts + draw.uniform(n, low=0.0, high=0.1)
    first = torch.where(labels[:, None] == torch.arange(2), begins[:, None], later[:, None])  # N 2: circle, square
    shapes = torch.tensor(shape_ids("circle", "square")).expand(n, 2)
    place = {axis: draw.uniform(n, 2, low=-0.6, high=0.6) for axis in ("x", "y")}
    scene = still(draw, n, 2, shape=shapes, **place)

    def at(time: float) -> Scene:
        return scene.replace(present=(time >= first) & (time < first + lasts[:, None]))

    return filmed(at, size), labels


def shape(draw: Draw, n: int, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """One of six shapes moves any way."""
    labels = draw.labels(n, len(SHAPES))
    form = torch.tensor(shape_ids(*SHAPES))[labels][:, None]
    way, length = draw.uniform(n, high=2 * torch.pi), draw.uniform(n, low=0.6, high=1.2)
    return filmed(passing(draw, n, way, length, shape=form).at, size), labels


def ground(draw: Draw, n: int, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A thing moves any way on one of six kinds of ground."""
    labels = draw.labels(n, len(GROUNDS))
    way, length = draw.uniform(n, high=2 * torch.pi), draw.uniform(n, low=0.6, high=1.2)
    scene = passing(draw, n, way, length, background=torch.tensor(FLAT_GROUNDS)[labels])
    return filmed(scene.at, size), labels


MAKERS = {"axis": axis, "direction": direction, "speed": speed, "order": order, "shape": shape, "ground": ground}


def draw_clips(
    task: str, split: str, n: int, seed: int, size: int, block: int = 40
) -> tuple[torch.Tensor, torch.Tensor]:
    """Clips of a task, uint8 N T 3 S S, and labels int64 N; clips of different splits have nothing in common."""
    parts = [
        MAKERS[task](Draw("motion", task, split, seed, start), min(block, n - start), size)
        for start in range(0, n, block)
    ]
    return torch.cat([clips for clips, _ in parts]), torch.cat([labels for _, labels in parts])
