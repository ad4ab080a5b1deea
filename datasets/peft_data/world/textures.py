"""Procedural two-tone textures: each maps surface coordinates to the share of the second colour."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.nn import functional as F

from .draw import hashed, lattice

Field = torch.Tensor


def _step(field: Field, width: Field | float = 0.08) -> Field:
    return (field / width * 0.5 + 0.5).clamp(0, 1)


def _wave(t: Field) -> Field:
    """A triangle wave of period 1 between -1 and 1."""
    return 4 * (t - (t + 0.5).floor()).abs() - 1


def _speckle(u: Field, v: Field, seed: Field, salt: int = 5) -> Field:
    grid = torch.stack((u / 4, v / 4), -1)
    return F.grid_sample(lattice(seed, 24, salt)[:, None], grid, padding_mode="reflection", align_corners=True)[:, 0]


def plain(u: Field, v: Field, seed: Field) -> Field:
    return torch.zeros_like(u)


def stripes(u: Field, v: Field, seed: Field) -> Field:
    return _step(_wave(u), 0.35)


def checks(u: Field, v: Field, seed: Field) -> Field:
    return _step(_wave(u * 0.7) * _wave(v * 0.7), 0.2)


def dots(u: Field, v: Field, seed: Field) -> Field:
    return _step(0.4 - torch.hypot(u - u.round(), v - v.round()), 0.12)


def rings(u: Field, v: Field, seed: Field) -> Field:
    return _step(_wave(torch.hypot(u, v)), 0.35)


def zigzag(u: Field, v: Field, seed: Field) -> Field:
    return _step(_wave(v + 0.3 * _wave(u * 0.7)), 0.35)


def bricks(u: Field, v: Field, seed: Field) -> Field:
    row = (v * 1.2).floor()
    across = u * 0.6 + 0.5 * (row % 2)
    return _step(
        torch.minimum(0.5 - (across - across.floor() - 0.5).abs(), 0.5 - (v * 1.2 - row - 0.5).abs()) - 0.13, 0.08
    )


def blotches(u: Field, v: Field, seed: Field) -> Field:
    return _step(_speckle(u / 3, v / 3, seed) - 0.5, 0.15)


def grain(u: Field, v: Field, seed: Field) -> Field:
    return _step(_wave(u + 1.2 * _speckle(u / 6, v / 14, seed)), 0.5)


def mesh(u: Field, v: Field, seed: Field) -> Field:
    return _step(torch.minimum(_wave(u * 0.8).abs(), _wave(v * 0.8).abs()) - 0.3, 0.2)


def cracks(u: Field, v: Field, seed: Field) -> Field:
    """Borders of Voronoi cells: the two nearest jittered lattice points are about equally far."""
    near, second = torch.full_like(u, 9.0), torch.full_like(u, 9.0)
    column, row, seed = u.floor().long(), v.floor().long(), seed[:, None, None]
    for dx in (-1, 0, 1):
        for dy in (-1, 0, 1):
            i, j = column + dx, row + dy
            far = torch.hypot(u - i - hashed(seed, 11, i, j), v - j - hashed(seed, 12, i, j))
            second = torch.minimum(second, torch.maximum(near, far))
            near = torch.minimum(near, far)
    return _step(0.16 - (second - near), 0.1)


def scales(u: Field, v: Field, seed: Field) -> Field:
    row = (v * 1.4).floor()
    across = u + 0.5 * (row % 2)
    return _step(0.62 - torch.hypot((across - across.round()) * 1.1, v * 1.4 - row) * 0.9, 0.15)


PATTERNS: dict[str, Callable[[Field, Field, Field], Field]] = {
    f.__name__: f for f in (plain, stripes, checks, dots, rings, blotches, bricks, zigzag, grain, mesh, cracks, scales)
}
TEXTURES = tuple(PATTERNS)
PRETRAINING_TEXTURES = TEXTURES[:8]
"""`grain`, `mesh`, `cracks` and `scales` are never drawn for pretraining."""


def pattern(kind: torch.Tensor, u: Field, v: Field, seed: torch.Tensor) -> Field:
    """Share of the second colour, N H W, in [0, 1].

    Args:
        kind: N indices into TEXTURES.
        u, v: N H W surface coordinates; one unit is about one repeat.
        seed: N seeds for the irregular ones.
    """
    out = torch.zeros_like(u)
    for index in kind.unique().tolist():
        if index:
            chosen = (kind == index).nonzero()[:, 0]
            out[chosen] = PATTERNS[TEXTURES[index]](u[chosen], v[chosen], seed[chosen])
    return out
