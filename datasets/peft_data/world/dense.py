"""Drawn pictures with what is known of each pixel and thing: masks of classes, boxes, depth. Three tasks."""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection

import torch

from peft_data.base import Pictures
from peft_data.errors import DataError, nearest

from .cache import cached
from .canvas import finish
from .draw import Draw
from .natural import cluttered
from .render import FAR, Layers, boxes, render
from .scene import Scene
from .shapes import SHAPES, shape_ids
from .structured import hall, spread
from .textures import TEXTURES

SIZE = 96
SPLITS = {"train": 800, "val": 200, "test": 200}
BLOCK = 40
VERSION = 3
"""Part of the cache's key: raised whenever any kept byte changes."""
THINGS = ("square", "star", "plus", "half moon", "gear", "heart", "arrow", "rosette")
ROOM = ("wall", "floor", "circle", "square", "triangle", "hexagon", "drop", "star")
PATTERNS = ("plain", "stripes", "checks", "dots", "rings", "bricks", "mesh", "scales")


def things(draw: Draw, n: int) -> tuple[Scene, torch.Tensor]:
    """Four things of any size on one ground, told apart by their shape."""
    kind = draw.ints(n, 4, high=len(THINGS))
    scene = cluttered(draw, torch.tensor(shape_ids(*THINGS))[kind[:, 0]])
    size, (x, y) = draw.uniform(n, 4, low=0.22, high=0.42), draw.uniform(2, n, 4, low=-0.75, high=0.75)
    scene = scene.replace(shape=torch.tensor(shape_ids(*THINGS))[kind], size=size, x=x, y=y)
    return scene, kind + 1


def rooms(draw: Draw, n: int) -> tuple[Scene, torch.Tensor]:
    """Rooms in perspective: wall, floor, and what stands on it by its shape."""
    x, z = spread(draw, n, 5, 1.6, 3.6)
    scene = hall(draw, n, 5, x=x, z=z, present=draw.chance(n, 5, p=0.7))
    kind = torch.tensor([[ROOM.index(SHAPES[each]) for each in row] for row in scene.shape.tolist()])
    return scene, kind


def patterns(draw: Draw, n: int) -> tuple[Scene, torch.Tensor]:
    """Four things of any shape, told apart by what covers them."""
    kind = draw.ints(n, 4, high=len(PATTERNS))
    scene = cluttered(draw, draw.choose(n, among=range(len(SHAPES))))
    size, (x, y) = draw.uniform(n, 4, low=0.28, high=0.45), draw.uniform(2, n, 4, low=-0.7, high=0.7)
    texture = torch.tensor([TEXTURES.index(name) for name in PATTERNS])[kind]
    return scene.replace(texture=texture, size=size, x=x, y=y, grain=draw.uniform(n, 4, low=2.5, high=4)), kind + 1


TASKS: dict[str, tuple[Callable[[Draw, int], tuple[Scene, torch.Tensor]], tuple[str, ...]]] = {
    "things": (things, ("ground", *THINGS)),
    "rooms": (rooms, ROOM),
    "patterns": (patterns, ("ground", *PATTERNS)),
}
"""Task → what draws its scenes, with the class of each object, and the classes' names."""


def pixels(task: str, layers: Layers, kind: torch.Tensor) -> torch.Tensor:
    """The class of each pixel, uint8 `N H W`."""
    ground = (layers.depth < FAR).long() if task == "rooms" else torch.zeros_like(layers.mask)
    chosen = kind.gather(1, (layers.mask.flatten(1) - 1).clamp(min=0)).view_as(layers.mask)
    return torch.where(layers.mask > 0, chosen, ground).to(torch.uint8)


def draw_dense(task: str, split: str, n: int, seed: int = 0, size: int = SIZE) -> dict[str, torch.Tensor]:
    """`pictures` uint8 N 3 S S, `masks` uint8 N S S, `depths` float32 N S S, `boxes` float32 N M 4 in pixels (zeros where
    nothing is seen), and `kinds` int64 N M, each box's class."""
    scenes, _ = TASKS[task]
    parts = []
    for block in range(-(-n // BLOCK)):
        draw = Draw("dense", task, split, seed, block)
        scene, kind = scenes(draw, min(BLOCK, n - block * BLOCK))
        layers = render(scene, size)
        parts.append(
            (
                finish(draw, layers.picture),
                pixels(task, layers, kind),
                layers.depth,
                boxes(layers, kind.shape[1]) * size,
                kind,
            )
        )
    names = ("pictures", "masks", "depths", "boxes", "kinds")
    return {name: torch.cat(each) for name, each in zip(names, zip(*parts, strict=True), strict=True)}


def kept_dense(
    name: str, names: Collection[str], seed: int, size: int, depths: bool = False
) -> tuple[str, list[Pictures], dict[str, torch.Tensor]]:
    """The task of a name `world/<kind>/<task>`; train, val and test, whose labels are rows of the tensors; and `masks`, `boxes`
    and `kinds` (`draw_dense`) of all of them, with `depths` those too, float16. They are drawn and kept once for all kinds.

    Raises:
        DataError: it is none of `names`, or there is no space to keep it.
    """
    task = name.rpartition("/")[2]
    if name not in names:
        raise DataError(f"there is no task {task!r} in the drawn world{nearest(name, names)}")

    @functools.cache
    def drawn() -> list[dict[str, torch.Tensor]]:
        return [draw_dense(task, split, count, seed, size) for split, count in SPLITS.items()]

    def make(*keys: str) -> dict[str, torch.Tensor]:
        return {key: torch.cat([each[key] for each in drawn()]) for key in keys}

    key, counts = f"world/dense-v{VERSION}/{task}-{size}px-seed{seed}", list(SPLITS.values())
    kept = cached(key, lambda: make("pictures", "masks", "boxes", "kinds"))
    if depths:
        kept |= cached(f"{key}-depths", lambda: {"depths": make("depths")["depths"].half()})
    rows = torch.arange(sum(counts)).split(counts)
    parts = zip(SPLITS, kept.pop("pictures").split(counts), rows, strict=True)
    return task, [Pictures(pictures, own, split=split) for split, pictures, own in parts], kept
