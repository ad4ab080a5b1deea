"""From scenes to picture, mask, depth, edges, boxes and clips, at any size."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from .draw import noise, pixel_grid
from .scene import BACKGROUNDS, Scene
from .shapes import outline_distance
from .textures import TEXTURES, pattern

FAR = 8.0
CAMERA_HEIGHT = 1.0


@dataclass(frozen=True)
class Layers:
    """What a picture shows, all N H W.

    Attributes:
        picture: N 3 H W float in [0, 1].
        mask: int64, 0 for background, m + 1 for object slot m.
        depth: float, the scene's z; FAR for sky and wall.
    """

    picture: torch.Tensor
    mask: torch.Tensor
    depth: torch.Tensor

    @property
    def uint8(self) -> torch.Tensor:
        """The picture as uint8 N 3 H W."""
        return to_uint8(self.picture)


def to_uint8(picture: torch.Tensor) -> torch.Tensor:
    """[0, 1] to 0 … 255, rounded."""
    return (picture.clamp(0, 1) * 255 + 0.5).to(torch.uint8)


def screen(scene: Scene) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Centre x, y and radius of every object on the canvas, N M each."""
    zoom, pan_x, pan_y, horizon = scene.camera[:, None].unbind(-1)
    scale = zoom / scene.z
    standing = horizon + (CAMERA_HEIGHT - scene.y - scene.size) * scale
    flat = horizon.isnan()
    centre_x = torch.where(flat, (scene.x - pan_x) * zoom, (scene.x - pan_x) * scale)
    centre_y = torch.where(flat, (scene.y - pan_y) * zoom, standing)
    return centre_x, centre_y, scene.size * torch.where(flat, zoom, scale)


def background(scene: Scene, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The empty scene: picture N H W 3 and depth N H W."""
    x, y = (grid.to(scene.seed.device) for grid in pixel_grid(size))
    grain = scene.ground_grain[:, None, None]
    u, v = x * grain, y * grain
    kind, n = scene.background, len(scene)
    depth = torch.full((n, size, size), FAR, device=x.device)
    share = 0.35 * noise(scene.seed, size, 3, salt=1)
    for index in kind.unique().tolist():
        name, chosen = BACKGROUNDS[index], (kind == index).nonzero()[:, 0]
        seed = scene.seed[chosen]
        if name == "gradient":
            share[chosen] = (0.5 + 0.5 * (x * scene.light[chosen, 0, None, None] + y)).clamp(0, 1)
        elif name == "clouds":
            share[chosen] = noise(seed, size, 4, salt=2, octaves=3)
        elif name in ("stripes", "checks"):
            share[chosen] = pattern(torch.full_like(chosen, TEXTURES.index(name)), u[chosen], v[chosen], seed)
        elif name == "speckle":
            share[chosen] = noise(seed, size, 16, salt=3)
        elif name in ("hall", "street"):
            below = y - scene.camera[chosen, 3, None, None]
            floor = scene.camera[chosen, 0, None, None] * CAMERA_HEIGHT / below.clamp(min=1e-3)
            across = x * floor.clamp(max=FAR) / scene.camera[chosen, 0, None, None]
            if name == "hall":
                tiles = torch.full_like(chosen, TEXTURES.index("checks"))
                step = pattern(tiles, across * 1.4, floor.clamp(max=FAR) * 1.4, seed)
            else:
                dash = (across.abs() < 0.07) & (floor % 1.0 < 0.6)
                step = ((across.abs() < 1.1) & ~dash).float() * 2 - 2
            fade = (below * 3).clamp(0, 1)
            share[chosen] = torch.where(below > 0, 0.75 + 0.25 * fade * step, 0.3 * noise(seed, size, 3, salt=4))
            depth[chosen] = torch.where(below > 0, floor.clamp(max=FAR), FAR)
    share = share[..., None]
    return scene.ground[:, None, None] * (1 - share) + scene.ground2[:, None, None] * share, depth


def render(scene: Scene, size: int) -> Layers:
    """Draws the scenes, far objects first.

    Args:
        scene: N scenes.
        size: height and width H in pixels; the same scene looks the same at every size.
    """
    x, y = (grid.to(scene.seed.device) for grid in pixel_grid(size))
    picture, depth = background(scene, size)
    mask = torch.zeros_like(depth, dtype=torch.long)
    centre_x, centre_y, radius = screen(scene)
    order = scene.z.masked_fill(~scene.present, -1.0).argsort(dim=1, descending=True, stable=True)
    rows = torch.arange(len(scene), device=x.device)
    for slot in order.unbind(1):

        def of(field: torch.Tensor, slot: torch.Tensor = slot) -> torch.Tensor:
            return field[rows, slot][:, None, None]

        r = of(radius).clamp(min=1e-4)
        px, py = (x - of(centre_x)) / r, (y - of(centre_y)) / r
        cos, sin, stretch = of(scene.angle).cos(), of(scene.angle).sin(), of(scene.aspect).sqrt()
        u, v = (px * cos + py * sin) / stretch, (py * cos - px * sin) * stretch
        distance = outline_distance(scene.shape[rows, slot], u, v)
        cover = (0.5 - distance * r * size / 2).clamp(0, 1) * of(scene.present)
        share = pattern(scene.texture[rows, slot], u * of(scene.grain) / 2, v * of(scene.grain) / 2, scene.seed + slot)
        colour = scene.colour[rows, slot][:, None, None] * (1 - share[..., None])
        colour = colour + scene.colour2[rows, slot][:, None, None] * share[..., None]
        light_x, light_y, strength = scene.light[:, :, None, None].unbind(1)
        rim = (1 + distance * 4).clamp(0, 1)
        shade = 1 + strength * (light_x * px + light_y * py).clamp(-1, 1) - 0.25 * strength * rim
        picture = picture + (colour * shade[..., None] - picture) * cover[..., None]
        mask = torch.where(cover > 0.5, slot[:, None, None] + 1, mask)
        depth = torch.where(cover > 0.5, of(scene.z), depth)
    return Layers(picture.permute(0, 3, 1, 2).clamp(0, 1), mask, depth)


def edges(layers: Layers) -> torch.Tensor:
    """Outlines N H W bool: pixels whose right or lower neighbour belongs to another object."""
    out = torch.zeros_like(layers.mask, dtype=torch.bool)
    out[:, :, :-1] |= layers.mask[:, :, 1:] != layers.mask[:, :, :-1]
    out[:, :-1] |= layers.mask[:, 1:] != layers.mask[:, :-1]
    return out


def boxes(layers: Layers, slots: int) -> torch.Tensor:
    """Boxes N M 4 of each object's visible part: left, top, right, bottom in [0, 1]; zeros where nothing is seen."""
    size = layers.mask.shape[-1]
    steps = torch.arange(size, device=layers.mask.device)
    out = []
    for slot in range(slots):
        seen = layers.mask == slot + 1
        sides = []
        for hit in (seen.any(1), seen.any(2)):
            first = torch.where(hit, steps, size).amin(1)
            last = torch.where(hit, steps + 1, 0).amax(1)
            sides.append((torch.where(hit.any(1), first, 0), last))
        (left, right), (top, bottom) = sides
        out.append(torch.stack((left, top, right, bottom), -1))
    return torch.stack(out, 1).float() / size


def clip(scene: Scene, frames: int, size: int, duration: float = 1.0) -> torch.Tensor:
    """Moving pictures, uint8 N T 3 H W: the scenes at T times spread evenly over [0, duration]."""
    times = [duration * t / max(frames - 1, 1) for t in range(frames)]
    return torch.stack([render(scene.at(time), size).uint8 for time in times], 1)
