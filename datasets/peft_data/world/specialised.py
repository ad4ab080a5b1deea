"""The specialised group, first part: tissue under the microscope and the back of the eye. (Maps are in `maps`.)"""

from __future__ import annotations

import torch

from .canvas import backdrop, finish, paint, soft
from .draw import Draw, apart, pixel_grid
from .render import render
from .scene import Scene, make_scene
from .shapes import shape_ids


def _over(canvas: torch.Tensor, scene: Scene) -> torch.Tensor:
    seen = render(scene, canvas.shape[-1])
    return torch.where(seen.mask[:, None] > 0, seen.picture, canvas)


def cells(draw: Draw, n: int, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Whether swollen, misshapen nuclei lie in the middle of the tissue (1) or at most near the border (0)."""
    labels, k = draw.labels(n, 2), 24
    ground, ink = draw.pair(n, gap=0.25)
    canvas = backdrop(draw, n, size, ground)
    inner, outer = draw.ints(n, high=5, low=1) * labels, draw.ints(n, high=4)
    number, slot = (inner + outer)[:, None], torch.arange(k)[None]
    ill, central = slot < number, slot < inner[:, None]
    angle, far = draw.uniform(n, k, high=6.28), draw.uniform(n, k).sqrt()
    reach = torch.where(central, far * 0.42, 0.72 + 0.23 * far)
    x = torch.where(ill, angle.cos() * reach, draw.uniform(n, k, low=-1))
    y = torch.where(ill, angle.sin() * reach, draw.uniform(n, k, low=-1))
    small, large = draw.uniform(n, k, low=0.06, high=0.11), draw.uniform(n, k, low=0.11, high=0.16)
    shape = torch.where(ill, draw.choose(n, k, among=shape_ids("kite", "gear", "leaf")), 0)
    colour = (ink[:, None] + draw.uniform(n, k, 3, low=-0.08, high=0.08)).clamp(0, 1)
    return finish(
        draw,
        _over(
            canvas,
            make_scene(
                draw.seeds(n),
                k,
                shape=shape,
                x=x,
                y=y,
                size=torch.where(ill, large, small),
                colour=colour,
                z=1 + 0.1 * far,
                aspect=draw.uniform(n, k, low=0.7, high=1.4),
                angle=draw.uniform(n, k, high=6.28),
                present=draw.chance(n, k, p=0.85) | ill,
            ),
        ),
    ), labels


def retina(draw: Draw, n: int, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Five grades by the number of lesions: none, 1 – 2, 3 – 5, 6 – 9, 10 – 14."""
    labels, (x, y) = draw.labels(n, 5), pixel_grid(size)
    low, high = torch.tensor([[0, 1, 3, 6, 10], [1, 3, 6, 10, 15]])[:, labels]
    number = low + (draw.uniform(n) * (high - low)).floor().long()
    tissue, vessel = draw.pair(n, gap=0.15)
    dark = draw.colour(n, low=0.1) * 0.25
    canvas = paint(backdrop(draw, n, size, dark), soft(torch.hypot(x, y)[None] - 0.95, size), tissue)
    place = torch.stack(
        (
            draw.uniform(n, low=0.35, high=0.6) * torch.where(draw.chance(n, p=0.5), 1, -1),
            draw.uniform(n, low=-0.2, high=0.2),
        ),
        1,
    )
    dx, dy = x - place[:, :1, None], y - place[:, 1:, None]
    for sign in (-1, 1):
        for bend in (0.5, 1.2):
            bent = bend * (1 + draw.uniform(n, 1, 1, low=-0.3, high=0.3)) * (dx * dx + 0.05).sqrt()
            curve = dy - sign * bent + 0.1 * sign
            cover = soft(curve.abs() - 0.035, size) * (torch.hypot(x, y) < 0.93)
            canvas = paint(canvas, cover * 0.7, vessel)
    canvas = paint(canvas, soft(torch.hypot(dx, dy) - 0.17, size), apart(tissue, draw.colour(n), 0.3))
    k, lesion = 14, apart(tissue, draw.colour(n), 0.3)
    angle, far = draw.uniform(n, k, high=6.28), draw.uniform(n, k, high=0.8).sqrt() * 0.9
    return finish(
        draw,
        _over(
            canvas,
            make_scene(
                draw.seeds(n),
                k,
                x=angle.cos() * far,
                y=angle.sin() * far,
                colour=lesion[:, None],
                aspect=draw.uniform(n, k, low=0.7, high=1.4),
                size=draw.uniform(n, 1, low=0.065, high=0.11) * draw.uniform(n, k, low=0.8, high=1.25),
                present=torch.arange(k)[None] < number[:, None],
            ),
        ),
    ), labels
