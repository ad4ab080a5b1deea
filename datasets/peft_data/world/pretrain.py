"""The part of the world that reference models are trained on; it shares no picture and few kinds with the tasks.

Disjoint from the tasks are: the draws (another key), the hues (the lower half of each of 12 sectors, the tasks use the
upper half), the animals' body plans, all outlines of things, all digits (invented signs instead), the combinations of
petal count and profile, six of the shapes (among them five of the ten of `objects`), four of the textures, and every
landscape, map, tissue and retina. Rooms in perspective and toys occur here too, but nothing about number, distance,
position or direction is a label for the picture as a whole.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.nn import functional as F

from .canvas import backdrop, finish, paint, soft
from .draw import Draw, pixel_grid
from .figures import posed_view, pretraining_species
from .natural import FLOWERS, cluttered, petals, signs
from .outlines import pretraining_polygons, thing_polygons
from .render import FAR, render
from .shapes import PRETRAINING_SHAPES, polygon_distance
from .structured import hall, spread, toy_layers
from .textures import PRETRAINING_TEXTURES, pattern
from .toys import TOYS, pretraining_glyphs

PROFILES = ("round", "pointed", "notched")
HEADS = {
    "shape": len(PRETRAINING_SHAPES),
    "texture": len(PRETRAINING_TEXTURES),
    "background": 6,
    "species": 16,
    "toy": len(TOYS),
    "polygon": 24,
    "glyph": 20,
    "petals": 15,
    "profile": 3,
    "surface": len(PRETRAINING_TEXTURES),
    "family": 8,
}
"""Attributes of a whole picture and their number of classes."""
DENSE = 2
"""Attributes of each pixel: foreground, and nearness (1 / depth)."""

Part = tuple[torch.Tensor, dict[str, torch.Tensor], torch.Tensor | None]


def _dense(front: torch.Tensor, nearness: torch.Tensor) -> torch.Tensor:
    return torch.stack((front.float(), nearness), 1)


def things(draw: Draw, n: int, size: int) -> Part:
    main = draw.labels(n, len(PRETRAINING_SHAPES))
    scene = cluttered(draw, main)
    layers = render(scene, size)
    labels = {"shape": main, "texture": scene.texture[:, 0], "background": scene.background}
    return layers.picture, labels, _dense(layers.mask > 0, 1 / layers.depth)


def rooms(draw: Draw, n: int, size: int) -> Part:
    slots = 7
    x, z = spread(draw, n, slots, 1.6, 6.0)
    scene = hall(
        draw,
        n,
        slots,
        x=x,
        z=z,
        present=draw.chance(n, slots, p=0.5),
        texture=draw.ints(n, slots, high=len(PRETRAINING_TEXTURES)),
        background=draw.choose(n, among=(6, 7)),
    )
    layers = render(scene, size)
    return layers.picture, {}, _dense(layers.mask > 0, 1 / layers.depth)


def animals(draw: Draw, n: int, size: int) -> Part:
    labels = draw.labels(n, HEADS["species"])
    picture, height = posed_view(draw, pretraining_species(HEADS["species"])[labels], backdrop(draw, n, size))
    seen = height > -torch.inf
    return picture, {"species": labels}, _dense(seen, torch.where(seen, 0.6 + 0.3 * height.clamp(-1, 1), 1 / FAR))


def playthings(draw: Draw, n: int, size: int) -> Part:
    labels = draw.labels(n, HEADS["toy"])
    picture, height = toy_layers(draw, labels, size, draw.uniform(n, high=6.2832), draw.uniform(n, high=1.4))
    seen = height > -torch.inf
    return picture, {"toy": labels}, _dense(seen, torch.where(seen, 0.6 + 0.3 * height.clamp(-1, 1), 1 / FAR))


def polygons(draw: Draw, n: int, size: int) -> Part:
    labels = draw.labels(n, HEADS["polygon"])
    ground, ink = draw.pair(n, gap=0.35)
    canvas = backdrop(draw, n, size, ground)
    book = pretraining_polygons(HEADS["polygon"])
    cover = soft(polygon_distance(thing_polygons(draw, labels, book), *pixel_grid(size)), size)
    return paint(canvas, cover, ink), {"polygon": labels}, _dense(cover, 1 / FAR + (1 - 1 / FAR) * cover)


def inscriptions(draw: Draw, n: int, size: int) -> Part:
    labels = draw.labels(n, HEADS["glyph"])
    ground, ink = draw.pair(n, gap=0.25)
    picture = signs(draw, backdrop(draw, n, size, ground), pretraining_glyphs(HEADS["glyph"]), labels, ink)
    return picture, {"glyph": labels}, None


def blossoms(draw: Draw, n: int, size: int) -> Part:
    known = {(count, form) for count, form, _ in FLOWERS.values()}
    free = [(count, k) for count in range(3, 15) for k, form in enumerate(PROFILES) if (count, form) not in known]
    count, profile = torch.tensor(free)[draw.labels(n, len(free))].unbind(1)
    picture = petals(draw, n, size, count.float(), profile.float(), draw.uniform(n, low=0.35, high=0.6))
    return picture, {"petals": count, "profile": profile}, None


def surfaces(draw: Draw, n: int, size: int) -> Part:
    labels = draw.labels(n, len(PRETRAINING_TEXTURES))
    (x, y), angle = pixel_grid(size), draw.uniform(n, 1, 1, low=-3.1416, high=3.1416)
    repeats, move = draw.uniform(n, 1, 1, low=1.3, high=4.5), draw.uniform(n, 2, 1, 1, low=-3, high=3)
    u = (x * angle.cos() + y * angle.sin()) * repeats + move[:, 0]
    v = (y * angle.cos() - x * angle.sin()) * repeats + move[:, 1]
    first, second = draw.pair(n, gap=0.2)
    canvas = first[:, :, None, None].expand(n, 3, size, size)
    return paint(canvas, pattern(labels, u, v, draw.seeds(n)), second), {"surface": labels}, None


FAMILIES: tuple[Callable[[Draw, int, int], Part], ...] = (
    things,
    rooms,
    animals,
    playthings,
    polygons,
    inscriptions,
    blossoms,
    surfaces,
)
CYCLE = (0, 1, 2, 4, 0, 5, 6, 3, 0, 1, 2, 4, 0, 5, 6, 7)
"""Which family each of 16 successive blocks shows."""


def pretraining_block(
    block: int, seed: int = 0, size: int = 40, n: int = 200
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """One block of pretraining pictures.

    Returns:
        pictures uint8 N 3 S S; labels int64 N len(HEADS), -1 where an attribute does not apply; dense targets uint8
        N DENSE S/4 S/4 in 0 … 200, 255 where they do not apply.
    """
    family = CYCLE[block % len(CYCLE)]
    draw = Draw("pretrain", FAMILIES[family].__name__, seed, block)
    picture, attributes, dense = FAMILIES[family](draw, n, size)
    attributes = attributes | {"family": torch.full((n,), family)}
    labels = torch.stack([attributes.get(name, torch.full((n,), -1)) for name in HEADS], 1)
    target = torch.full((n, DENSE, size // 4, size // 4), 255, dtype=torch.uint8)
    if dense is not None:
        target = (F.avg_pool2d(dense, 4).clamp(0, 1) * 200).to(torch.uint8)
    return finish(draw, picture, grain=0.1), labels, target
