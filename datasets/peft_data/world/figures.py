"""Bodies made of tapered capsules: creatures, toys and glyphs, turned in space, lit and drawn without perspective."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from .draw import Draw, pixel_grid


@dataclass(frozen=True)
class Figure:
    """N bodies of K capsules; x points forward, y up, z to the side.

    Attributes:
        start, end: N K 3.
        start_radius, end_radius: N K; 0 means absent.
        colour: N K 3.
    """

    start: torch.Tensor
    end: torch.Tensor
    start_radius: torch.Tensor
    end_radius: torch.Tensor
    colour: torch.Tensor


def body(parts: list[tuple], colour: torch.Tensor) -> Figure:
    """A figure from parts (start xyz, end xyz, start radius, end radius), each number or N; colour is N K 3."""
    n = len(colour)

    def column(value: float | torch.Tensor) -> torch.Tensor:
        return torch.as_tensor(value, dtype=torch.float32).expand(n)

    def stack(values: list) -> torch.Tensor:
        return torch.stack([torch.stack([column(v) for v in value], -1) for value in values], 1)

    return Figure(
        stack([p[0] for p in parts]),
        stack([p[1] for p in parts]),
        torch.stack([column(p[2]) for p in parts], 1),
        torch.stack([column(p[3]) for p in parts], 1),
        colour,
    )


def turn(azimuth: torch.Tensor, elevation: torch.Tensor, roll: torch.Tensor) -> torch.Tensor:
    """Rotation N 3 3 to the view: about the vertical, then tilted towards the viewer, then about the view axis."""
    zero, one = torch.zeros_like(azimuth), torch.ones_like(azimuth)

    def matrix(*rows: tuple) -> torch.Tensor:
        return torch.stack([torch.stack(row, -1) for row in rows], -2)

    ca, sa, ce, se = azimuth.cos(), azimuth.sin(), elevation.cos(), elevation.sin()
    about_y = matrix((ca, zero, sa), (zero, one, zero), (-sa, zero, ca))
    about_x = matrix((one, zero, zero), (zero, ce, -se), (zero, se, ce))
    about_z = matrix((roll.cos(), -roll.sin(), zero), (roll.sin(), roll.cos(), zero), (zero, zero, one))
    return about_z @ about_x @ about_y


def draw_figure(
    canvas: torch.Tensor,
    figure: Figure,
    rotation: torch.Tensor,
    scale: torch.Tensor,
    shift: torch.Tensor,
    light: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Figures over pictures.

    Args:
        canvas: N 3 S S.
        figure: N bodies.
        rotation: N 3 3.
        scale: N canvas units for one unit of the body.
        shift: N 2 place of the body's origin on the canvas.
        light: N 3 direction (to the right, up, towards the viewer); its length is the strength of the shading.

    Returns:
        the pictures, and depth N S S (height towards the viewer in body units, -inf where there is no body).
    """
    size = canvas.shape[-1]
    x, y = (grid[None] for grid in pixel_grid(size))
    units = scale[:, None, None]
    px, py = (x - shift[:, 0, None, None]) / units, (shift[:, 1, None, None] - y) / units
    start, end = figure.start @ rotation.transpose(1, 2), figure.end @ rotation.transpose(1, 2)
    height = torch.full_like(canvas[:, 0], -torch.inf)
    cover, shaded = torch.zeros_like(height), torch.zeros_like(canvas)
    for k in range(start.shape[1]):
        ax, ay, az = start[:, k, :, None, None].unbind(1)
        ex, ey, ez = (end - start)[:, k, :, None, None].unbind(1)
        t = (((px - ax) * ex + (py - ay) * ey) / (ex * ex + ey * ey).clamp(min=1e-6)).clamp(0, 1)
        first, last = figure.start_radius[:, k, None, None], figure.end_radius[:, k, None, None]
        radius = first + (last - first) * t
        dx, dy = px - ax - t * ex, py - ay - t * ey
        rise = (radius**2 - dx * dx - dy * dy).clamp(min=0).sqrt()
        reach = ((radius - torch.hypot(dx, dy)) * units * size / 2 + 0.5).clamp(0, 1) * (radius > 0)
        top = az + t * ez + rise
        nearer = (reach > 0) & (top > height)
        normal = torch.stack((dx, dy, rise), 1) / radius.clamp(min=1e-4)[:, None]
        shade = 1 + (normal * light[:, :, None, None]).sum(1, keepdim=True) - light[:, 2, None, None, None]
        colour = figure.colour[:, k, :, None, None] * shade.clamp(0.2, 1.6)
        shaded = torch.where(nearer[:, None], colour, shaded)
        height = torch.where(nearer, top, height)
        cover = torch.maximum(cover, reach)
    cover = cover[:, None]
    return canvas + (shaded.clamp(0, 1) - canvas) * cover, height


def lights(draw: Draw, n: int) -> torch.Tensor:
    """N 3 light directions from somewhere above, of moderate strength."""
    side = draw.uniform(n, low=-0.5, high=0.5)
    return torch.stack((side, draw.uniform(n, low=0.1, high=0.5), draw.uniform(n, low=0.1, high=0.5)), -1)


# body length, body radius, leg length, leg radius, pairs of legs, neck length, neck rise, head radius, snout length,
# ear length, tail length, tail rise, tail radius, hump
SPECIES: dict[str, tuple[float, ...]] = {
    "cat": (0.9, 0.22, 0.35, 0.07, 2, 0.18, 0.9, 0.2, 0.06, 0.18, 0.7, 0.8, 0.05, 0.0),
    "giraffe": (0.8, 0.24, 0.8, 0.06, 2, 0.85, 1.2, 0.13, 0.16, 0.1, 0.3, -0.6, 0.03, 0.0),
    "pig": (0.9, 0.34, 0.2, 0.08, 2, 0.08, 0.1, 0.24, 0.16, 0.1, 0.12, 0.5, 0.03, 0.0),
    "crocodile": (1.2, 0.17, 0.14, 0.07, 2, 0.1, 0.0, 0.14, 0.55, 0.0, 0.9, -0.05, 0.1, 0.0),
    "rabbit": (0.55, 0.26, 0.18, 0.08, 2, 0.14, 0.7, 0.2, 0.05, 0.48, 0.06, 0.6, 0.1, 0.0),
    "camel": (0.9, 0.22, 0.6, 0.06, 2, 0.45, 0.6, 0.14, 0.2, 0.06, 0.3, -0.7, 0.03, 0.26),
    "ant": (0.9, 0.14, 0.45, 0.035, 3, 0.12, 0.1, 0.17, 0.05, 0.35, 0.15, 0.0, 0.16, 0.0),
    "ostrich": (0.5, 0.28, 0.75, 0.05, 1, 0.7, 1.4, 0.11, 0.16, 0.0, 0.28, 0.3, 0.12, 0.0),
    "mouse": (0.6, 0.24, 0.14, 0.05, 2, 0.08, 0.1, 0.17, 0.18, 0.16, 0.9, 0.25, 0.03, 0.0),
    "dachshund": (1.5, 0.2, 0.18, 0.08, 2, 0.22, 0.8, 0.17, 0.22, 0.14, 0.4, 0.7, 0.04, 0.0),
}


def pretraining_species(count: int = 16) -> torch.Tensor:
    """Body plans (count × 14) of animals that live in no task."""
    draw = Draw("pretrain", "species")
    plans = torch.tensor(list(SPECIES.values()))
    low, high = plans.amin(0), plans.amax(0)
    out = low + (high - low) * draw.uniform(count, plans.shape[1])
    out[:, 4] = draw.ints(count, high=4, low=1).float()
    out[:, 13] = out[:, 13] * draw.chance(count, p=0.3)
    return out


def creature(draw: Draw, plan: torch.Tensor, spread: float = 0.12) -> Figure:
    """Animals from body plans (N × 14, see SPECIES), each number varied by up to ± `spread`, in a random pose."""
    n = len(plan)
    vary = plan * draw.uniform(n, plan.shape[1], low=1 - spread, high=1 + spread)
    length, r, leg, leg_r, _, neck, rise, head, snout, ear, tail, lift, tail_r, hump = vary.unbind(1)
    pairs, half, step = plan[:, 4], length / 2, draw.uniform(n, 2, low=-0.25, high=0.25)
    nx, ny = half + neck * rise.cos(), r * 0.5 + neck * rise.sin()
    nod = draw.uniform(n, low=-0.35, high=0.25)
    parts = [
        ((-half, 0, 0), (half, 0, 0), r, r * 0.95),
        ((half, r * 0.3, 0), (nx, ny, 0), torch.minimum(r * 0.6, head), head * 0.7),
        ((nx, ny, 0), (nx + 0.02, ny, 0), head, head),
        (
            (nx, ny, 0),
            (nx + head * 0.8 + snout * nod.cos(), ny + snout * nod.sin() - head * 0.2, 0),
            head * 0.7,
            head * 0.4,
        ),
        (
            (-half, r * 0.3, 0),
            (-half - r * 0.6 - tail * lift.cos(), r * 0.3 + tail * lift.sin(), 0),
            tail_r,
            tail_r * 0.6,
        ),
        ((-0.05, r * 0.6, 0), (0.05, r * 0.6 + hump, 0), hump, hump * 0.7),
    ]
    for side in (-1, 1):
        here = (ear > 0).float() * head
        parts.append(
            (
                (nx, ny + head * 0.6, side * head * 0.5),
                (nx - ear * 0.4, ny + head * 0.7 + ear, side * head * 0.7),
                here * 0.35,
                here * 0.2,
            )
        )
        for pair in range(4):
            there = (pair < pairs).float()
            share = torch.where(pairs > 1, pair / (pairs - 1).clamp(min=1), 0.5)
            lx = (share - 0.5) * (length + r * 0.4)
            swing = step[:, pair % 2] * leg * side
            parts.append(
                (
                    (lx, -r * 0.4, side * r * 0.6),
                    (lx + swing, -r - leg, side * r * 0.7),
                    leg_r * there * 1.3,
                    leg_r * there,
                )
            )
    base, second = draw.colour(n), draw.colour(n)
    colour = base[:, None].repeat(1, len(parts), 1)
    colour[:, [3, 4, 6, 11]] = second[:, None]
    return body(parts, colour)


def posed_view(draw: Draw, plan: torch.Tensor, canvas: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Animals with the given body plans (N × 14) over pictures N 3 S S, facing either way; see draw_figure."""
    n = len(plan)
    azimuth = draw.uniform(n, low=-0.75, high=0.75) + math.pi * draw.chance(n, p=0.5)
    view = turn(azimuth, draw.uniform(n, low=-0.1, high=0.5), draw.uniform(n, low=-0.25, high=0.25))
    scale = draw.uniform(n, low=1.0, high=1.3) / (0.65 + 0.35 * plan[:, 0] + 0.45 * plan[:, 2] + 0.3 * plan[:, 5])
    shift = torch.stack((draw.uniform(n, low=-0.2, high=0.2), draw.uniform(n, low=-0.15, high=0.25)), 1)
    return draw_figure(canvas, creature(draw, plan), view, scale, shift, lights(draw, n))
