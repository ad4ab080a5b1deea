"""Captioned pictures for contrastive pretraining: pictures with rows of attributes, and captions drawn from those.

They share no picture and no hue with the sets of `world/open/*` and the tasks (`draw.Draw`). What `phrases.held_back`
knows is in no caption, and the main thing of no picture.
"""

from __future__ import annotations

import torch

from .cache import cached
from .draw import Draw
from .named import COLOURS, COLUMNS, FIRST_ANIMAL, GROUNDS, NOUNS, draw_named
from .phrases import FORMS, caption, held_back, mentions
from .scene import FLAT_GROUNDS
from .textures import TEXTURES

VERSION = 1
"""Part of the cache's key: raised whenever any drawn byte changes."""
BLOCK = 250


def block(index: int, seed: int = 0, size: int = 40, n: int = BLOCK) -> tuple[torch.Tensor, torch.Tensor]:
    """One block of pretraining pictures.

    Returns:
        pictures uint8 N 3 S S and attributes int64 N 6 (`named.COLUMNS`).
    """
    draw = Draw("pretrain", "captions", seed, index)
    pictures, attributes = draw_named(draw, _wanted(draw, n), size)
    ground = attributes[:, COLUMNS.index("ground colour")]
    ground[ground == COLOURS.index("teal")] = -1  # held back: no caption names it
    return pictures, attributes


def pool(blocks: int, first: int = 0, seed: int = 0, size: int = 40) -> dict[str, torch.Tensor]:
    """`pictures` and `attributes` of some blocks, from the cache where they are there."""

    def make() -> dict[str, torch.Tensor]:
        pictures, attributes = zip(*(block(first + k, seed, size) for k in range(blocks)), strict=True)
        return {"pictures": torch.cat(pictures), "attributes": torch.cat(attributes)}

    return cached(f"world/captions-v{VERSION}/{first}-{blocks}-{size}px-seed{seed}", make)


def captions(draw: Draw, attributes: torch.Tensor) -> tuple[list[str], torch.Tensor]:
    """A caption for each row of attributes N 6, and which attributes it mentions, N 6 bool."""
    said, form = mentions(draw, attributes), draw.ints(len(attributes), high=len(FORMS))
    rows = zip(attributes.tolist(), said.tolist(), form.tolist(), strict=True)
    return [caption(*row) for row in rows], said


def _wanted(draw: Draw, n: int) -> torch.Tensor:
    """Attributes to draw, N 6, none of them held back: candidates are drawn until N are left."""
    rows = torch.empty(0, len(COLUMNS), dtype=torch.long)
    while len(rows) < n:
        k = 2 * n
        solid = draw.chance(k, p=0.8)
        noun = torch.where(solid, draw.ints(k, high=FIRST_ANIMAL), draw.ints(k, high=len(NOUNS), low=FIRST_ANIMAL))
        texture = draw.ints(k, high=len(TEXTURES)) * draw.chance(k, p=0.65)
        wild = draw.chance(k, p=0.3)
        ground = torch.where(
            wild, draw.ints(k, high=len(GROUNDS), low=len(FLAT_GROUNDS)), draw.ints(k, high=len(FLAT_GROUNDS))
        )
        none = torch.full_like(noun, -1)
        made = torch.stack(
            (
                noun,
                torch.where(solid, draw.ints(k, high=12), none),
                torch.where(solid, texture, none),
                none,
                ground,
                none,
            ),
            1,
        )
        rows = torch.cat((rows, made[~held_back(made)]))
    return rows[:n]
