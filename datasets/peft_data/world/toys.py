"""Toys seen from all sides (after the five kinds of smallNORB) and written signs made of strokes."""

from __future__ import annotations

import torch

from .draw import Draw
from .figures import SPECIES, Figure, body, creature

TOYS = ("animal", "person", "plane", "truck", "car")
_PARTS = 17


def _person(s: torch.Tensor) -> list[tuple]:
    return [
        ((0, -0.1, 0), (0, 0.35, 0), 0.2 * s[0], 0.22 * s[0]),
        ((0, 0.75, 0), (0.02, 0.78, 0), 0.2, 0.2),
        ((0.15, 0.74, 0), (0.28, 0.72, 0), 0.08, 0.05),
        ((-0.25, 0.05, 0), (-0.25, 0.35, 0), 0.14, 0.16),
        ((0, 0.38, 0.28), (0.35 * s[1], 0.0, 0.38), 0.09, 0.08),
        ((0, 0.38, -0.28), (0.1, -0.1, -0.4), 0.09, 0.08),
        ((0, -0.2, 0.12), (0.15, -0.9 * s[2], 0.16), 0.12, 0.09),
        ((0, -0.2, -0.12), (-0.1, -0.9 * s[2], -0.16), 0.12, 0.09),
        ((0.15, -0.9 * s[2], 0.16), (0.3, -0.92 * s[2], 0.16), 0.09, 0.07),
        ((-0.1, -0.9 * s[2], -0.16), (0.05, -0.92 * s[2], -0.16), 0.09, 0.07),
    ]


def _plane(s: torch.Tensor) -> list[tuple]:
    return [
        ((-0.9 * s[0], 0.05, 0), (0.8 * s[0], 0, 0), 0.1, 0.19),
        ((0.35, 0.1, 0), (0.55, 0.12, 0), 0.17, 0.1),
        ((0.1, 0, 0.1), (-0.2 * s[1], 0, 1.0 * s[2]), 0.14, 0.06),
        ((0.1, 0, -0.1), (-0.2 * s[1], 0, -1.0 * s[2]), 0.14, 0.06),
        ((-0.85 * s[0], 0.05, 0), (-1.0 * s[0], 0.08, 0.4), 0.08, 0.05),
        ((-0.85 * s[0], 0.05, 0), (-1.0 * s[0], 0.08, -0.4), 0.08, 0.05),
        ((-0.85 * s[0], 0.05, 0), (-1.05 * s[0], 0.45, 0), 0.09, 0.05),
        ((0, -0.1, 0.4), (0.2, -0.1, 0.4), 0.09, 0.09),
        ((0, -0.1, -0.4), (0.2, -0.1, -0.4), 0.09, 0.09),
    ]


def _wheels(front: torch.Tensor | float, back: torch.Tensor | float, low: float, wide: float) -> list[tuple]:
    return [((x, low, z), (x, low, z * 1.15), 0.16, 0.16) for x in (front, back) for z in (-wide, wide)]


def _truck(s: torch.Tensor) -> list[tuple]:
    box = [((-0.9 * s[0], y, z), (0.2, y, z), 0.22, 0.22) for y in (0.0, 0.35 * s[1]) for z in (-0.18, 0.18)]
    cab = [((0.55, y, -0.16), (0.55, y, 0.16), 0.22, 0.22) for y in (-0.05, 0.15)]
    hood = [((0.85, -0.12, -0.14), (0.85, -0.12, 0.14), 0.16, 0.16)]
    return [*box, *cab, *hood, *_wheels(0.7, -0.6 * s[0], -0.3, 0.3)]


def _car(s: torch.Tensor) -> list[tuple]:
    low = [((-0.8 * s[0], -0.05, z), (0.8 * s[0], -0.1, z), 0.2, 0.17) for z in (-0.2, 0.0, 0.2)]
    cabin = [((-0.4, 0.2 * s[1], z), (0.15, 0.18 * s[1], z), 0.2, 0.17) for z in (-0.14, 0.14)]
    spoiler = [((-0.85 * s[0], 0.22, -0.25), (-0.85 * s[0], 0.22, 0.25), 0.06, 0.06)]
    return [*low, *cabin, *spoiler, *_wheels(0.5 * s[0], -0.5 * s[0], -0.22, 0.32)]


def toys(draw: Draw, kind: torch.Tensor) -> Figure:
    """Toys of the given kinds (N indices into TOYS), of varied proportions and part colours."""
    n = len(kind)
    shapes = draw.uniform(3, n, low=0.8, high=1.2)
    plans = torch.tensor([SPECIES[name] for name in ("cat", "pig", "giraffe", "dachshund")])
    animal = creature(draw, plans[draw.ints(n, high=4)])
    built = [animal, *(_bodies(draw, make(shapes), n) for make in (_person, _plane, _truck, _car))]
    rows = torch.arange(n)
    return Figure(
        *(
            torch.stack([_pad(getattr(figure, field)) for figure in built])[kind, rows]
            for field in ("start", "end", "start_radius", "end_radius", "colour")
        )
    )


def _bodies(draw: Draw, parts: list[tuple], n: int) -> Figure:
    colours = draw.colour(n, 3)
    return body(parts, colours[:, torch.arange(len(parts)) % 3])


def _pad(field: torch.Tensor) -> torch.Tensor:
    missing = _PARTS - field.shape[1]
    return torch.cat((field, field.new_zeros(len(field), missing, *field.shape[2:])), 1)


# polylines in a box with x right in ± 0.6 and y up in ± 1
DIGITS: tuple[list[tuple[float, float]], ...] = (
    [(0, 1), (0.5, 0.6), (0.5, -0.6), (0, -1), (-0.5, -0.6), (-0.5, 0.6), (0, 1)],
    [(-0.35, 0.6), (0.1, 1), (0.1, -1)],
    [(-0.5, 0.6), (-0.1, 1), (0.45, 0.75), (0.4, 0.25), (-0.5, -1), (0.55, -1)],
    [(-0.5, 0.85), (0.1, 1), (0.5, 0.5), (0, 0.05), (0.55, -0.45), (0.1, -1), (-0.5, -0.8)],
    [(0.35, -1), (0.35, 1), (-0.55, -0.3), (0.6, -0.3)],
    [(0.5, 1), (-0.4, 1), (-0.45, 0.15), (0.2, 0.2), (0.55, -0.4), (0.1, -1), (-0.5, -0.85)],
    [(0.35, 1), (-0.3, 0.4), (-0.5, -0.4), (0, -1), (0.5, -0.55), (0.1, -0.05), (-0.45, -0.35)],
    [(-0.5, 1), (0.55, 1), (0, -1)],
    [(0, 0.05), (0.45, 0.55), (0, 1), (-0.45, 0.55), (0, 0.05), (0.5, -0.5), (0, -1), (-0.5, -0.5), (0, 0.05)],
    [(0.45, 0.4), (0, 0.05), (-0.5, 0.5), (0, 1), (0.45, 0.6), (0.4, -0.3), (-0.2, -1)],
)


def pretraining_glyphs(count: int = 20) -> tuple[list[tuple[float, float]], ...]:
    """Invented signs that are no digits."""
    draw = Draw("pretrain", "glyphs")
    points = draw.uniform(count, 7, 2, low=-1, high=1) * torch.tensor([0.55, 1.0])
    lengths = draw.ints(count, low=4, high=8)
    return tuple([(float(x), float(y)) for x, y in points[k, : lengths[k]]] for k in range(count))


def glyphs(
    draw: Draw,
    signs: tuple[list[tuple[float, float]], ...],
    kind: torch.Tensor,
    colour: torch.Tensor,
    wobble: float = 0.08,
) -> Figure:
    """Flat signs in strokes: N indices into `signs`, colour N 3, each point moved by up to ± `wobble`."""
    longest = max(map(len, signs))
    padded = torch.tensor([[*sign, *[sign[-1]] * (longest - len(sign))] for sign in signs])[kind]
    n = len(kind)
    points = padded + draw.uniform(n, longest, 2, low=-wobble, high=wobble)
    points = torch.cat((points, torch.zeros(n, longest, 1)), -1)
    thick = draw.uniform(n, 1, low=0.08, high=0.2).expand(n, longest - 1)
    return Figure(points[:, :-1], points[:, 1:], thick, thick, colour[:, None].expand(n, longest - 1, 3))
