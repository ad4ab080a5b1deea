"""Pairs of picture and condition, for control: captioned pictures of the drawn world with exact edges, masks, depth, boxes.

Scenes are of the kinds of `peft_data.world.captioned` (the key of their draws is another one, so no picture is shared
with it); every condition is computed from the scene, not from the pixels.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional as F

from peft_data.errors import DataError, nearest

from .captioned import COLOURS, LABELS, SHAPES, caption, draw_scenes
from .draw import Draw
from .render import FAR, Layers, boxes, edges, render, screen
from .scene import Scene

CONDITIONS = {
    "canny": "outlines of the things",
    "scribble": "the same, thick and coarse",
    "mask": "a colour for each of the twelve shapes",
    "depth": "near is bright",
    "normal": "which way the surface faces",
    "pose": "a stick along each thing's height and one along its width",
    "colour": "mean colours of 8 × 8 squares",
    "box": "a box and a phrase for each thing",
    "picture": "the picture itself, as a prompt",
}
NAMES = {f"world/control/{name}": f"drawn pictures with captions and {about}" for name, about in CONDITIONS.items()}
COUNTS = {"train": 2000, "test": 200}
BLOCK = 500
PALETTE = tuple((r, g, b) for r in (0, 128, 255) for g in (0, 128, 255) for b in (0, 128, 255))[2:26:2]
"""RGB of the twelve shapes in masks; the background is black."""


@dataclass(frozen=True)
class Pairs:
    """N pictures and what is known of them.

    Attributes:
        pictures: uint8 N 3 S S.
        conditions: uint8 N 3 S S; none for boxes.
        captions: N texts.
        boxes: for each picture its things' boxes, left, top, right, bottom in [0, 1]; phrases: one a box.
        classes: int64 N S S, 0 for the background, else 1 + index into `SHAPES`.
        nearness: float N S S in [0, 1]; outlines: bool N S S.
        labels: int64 N K, see `peft_data.world.captioned.LABELS`.
    """

    pictures: torch.Tensor
    conditions: torch.Tensor | None
    captions: tuple[str, ...]
    boxes: tuple[tuple[tuple[float, ...], ...], ...]
    phrases: tuple[tuple[str, ...], ...]
    classes: torch.Tensor
    nearness: torch.Tensor
    outlines: torch.Tensor
    labels: torch.Tensor

    def __len__(self) -> int:
        return len(self.pictures)


def condition_of(name: str) -> str:
    """The condition in `world/control/<condition>`.

    Raises:
        DataError: there is no such condition.
    """
    condition = name.removeprefix("world/control/")
    if condition not in CONDITIONS:
        raise DataError(
            f"there is no condition {condition!r} in the drawn world{nearest(condition, CONDITIONS)}: world/control/ with "
            f"{', '.join(CONDITIONS)}"
        )
    return condition


def draw_pairs(condition: str, count: int, split: str = "train", seed: int = 0, size: int = 64) -> Pairs:
    """Pairs of the condition of that name.

    Args:
        condition: a key of `CONDITIONS`.
        count: how many; fewer of them are the first of more.
        split: any word; different splits share no picture.
        seed: another seed gives other pictures.
        size: height and width S in pixels.

    Raises:
        DataError: there is no such condition.
    """
    condition_of(f"world/control/{condition}")
    drawn = [draw_scenes(Draw("control", split, seed, block), BLOCK) for block in range(-(-count // BLOCK))]
    parts = []
    for number, (scene, labels) in enumerate(drawn):
        kept = slice(0, min(BLOCK, count - number * BLOCK))
        parts.append(_pairs(condition, scene[kept], labels[kept], size))
    return parts[0] if len(parts) == 1 else _joined(parts)


def _joined(parts: list[Pairs]) -> Pairs:
    def of(name: str) -> Any:
        values = [getattr(part, name) for part in parts]
        if values[0] is None:
            return None
        return torch.cat(values) if isinstance(values[0], torch.Tensor) else sum(values, ())

    return Pairs(**{name: of(name) for name in Pairs.__dataclass_fields__})


def _pairs(condition: str, scene: Scene, labels: torch.Tensor, size: int) -> Pairs:
    layers = render(scene, size)
    column = {name: number for number, name in enumerate(LABELS)}
    shapes = torch.stack((labels[:, column["shape"]], labels[:, column["second shape"]]), 1)
    colours = torch.stack((labels[:, column["colour"]], labels[:, column["second colour"]]), 1)
    padded = F.pad(shapes + 1, (1, 0))
    classes = padded.gather(1, layers.mask.flatten(1)).view_as(layers.mask)
    nearness = nearness_of(layers)
    places = boxes(layers, shapes.shape[1])
    seen = (places[..., 2] > places[..., 0]) & scene.present
    phrases = tuple(
        tuple(f"{tuple(COLOURS)[c]} {SHAPES[s]}" for s, c, there in zip(*rows, strict=True) if there)
        for rows in zip(shapes.tolist(), colours.tolist(), seen.tolist(), strict=True)
    )
    kept = tuple(
        tuple(tuple(box) for box, there in zip(row.tolist(), here.tolist(), strict=True) if there)
        for row, here in zip(places, seen, strict=True)
    )
    outlines = edges(layers)
    drawn = {
        "canny": lambda: _grey(outlines.float()),
        "scribble": lambda: _grey(F.interpolate(F.max_pool2d(outlines[:, None].float(), 2), scale_factor=2)[:, 0]),
        "mask": lambda: coloured(classes),
        "depth": lambda: _grey(nearness),
        "normal": lambda: normals(nearness),
        "pose": lambda: _sticks(scene, size),
        "colour": lambda: coarse_colours(layers.uint8),
        "picture": lambda: layers.uint8,
        "box": lambda: None,
    }[condition]()
    texts = tuple(caption(row) for row in labels)
    return Pairs(layers.uint8, drawn, texts, kept, phrases, classes, nearness, outlines, labels)


def nearness_of(layers: Layers) -> torch.Tensor:
    """1 / depth, from 0 (sky and walls) to 1 (depth 1)."""
    return ((1 / layers.depth - 1 / FAR) / (1 - 1 / FAR)).clamp(0, 1)


def coloured(classes: torch.Tensor) -> torch.Tensor:
    """Class maps N S S as pictures in the colours of `PALETTE`."""
    table = torch.tensor([(0, 0, 0), *PALETTE], dtype=torch.uint8)
    return table[classes].permute(0, 3, 1, 2).contiguous()


def normals(nearness: torch.Tensor, steepness: float = 4.0) -> torch.Tensor:
    """Surface normals of nearness maps N S S as pictures: x, y, z from −1 … 1 to 0 … 255, z towards the viewer."""
    field = F.pad(nearness[:, None], (1, 1, 1, 1), mode="replicate")[:, 0] * steepness
    x, y = (field[:, 1:-1, :-2] - field[:, 1:-1, 2:]), (field[:, :-2, 1:-1] - field[:, 2:, 1:-1])
    vector = F.normalize(torch.stack((x, y, torch.ones_like(x)), 1), dim=1)
    return ((vector + 1) * 127.5).round().to(torch.uint8)


def coarse_colours(pictures: torch.Tensor, squares: int = 8) -> torch.Tensor:
    """Pictures uint8 N 3 H W as squares of their mean colour."""
    small = F.adaptive_avg_pool2d(pictures.float(), squares)
    return F.interpolate(small, size=pictures.shape[-2:]).round().to(torch.uint8)


def _grey(values: torch.Tensor) -> torch.Tensor:
    return (values * 255).round().to(torch.uint8)[:, None].expand(-1, 3, -1, -1).contiguous()


def _sticks(scene: Scene, size: int) -> torch.Tensor:
    """Each thing as a red stick along its height and a green one along its width, blue where they meet."""
    line = (torch.arange(size) * 2 + 1) / size - 1
    centre_x, centre_y, radius = screen(scene)
    out = torch.zeros(len(scene), 3, size, size)
    for slot in range(centre_x.shape[1]):
        x = line[None, None, :] - centre_x[:, slot, None, None]
        y = line[None, :, None] - centre_y[:, slot, None, None]
        cos, sin = scene.angle[:, slot, None, None].cos(), scene.angle[:, slot, None, None].sin()
        reach, thick = radius[:, slot, None, None], 2.2 / size
        u, v = x * cos + y * sin, y * cos - x * sin
        wide = scene.aspect[:, slot, None, None].sqrt() * math.sqrt(0.5)
        upright = (u.abs() < thick) & (v.abs() < reach / wide * 0.5)
        across = (v.abs() < thick) & (u.abs() < reach * wide)
        here = scene.present[:, slot, None, None]
        out = torch.maximum(out, torch.stack((upright & here, across & here, upright & across & here), 1).float())
    return (out * 255).to(torch.uint8)


def split_of(name: str) -> tuple[str, str]:
    """(condition, split) of `world/control/<condition>` or `world/control/<condition>/<split>`.

    Raises:
        DataError: it is no such name.
    """
    found = re.fullmatch(r"world/control/([^/]+)(?:/(train|test))?", name)
    if not found:
        raise DataError(f"there is no data set {name!r}: world/control/ with one of {', '.join(CONDITIONS)}")
    return condition_of(found[1]), found[2] or "train"
