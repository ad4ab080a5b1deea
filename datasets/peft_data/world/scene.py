"""The scene description: a batch of tensors from which picture, caption, mask, edges, depth, boxes and motion come."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch

BACKGROUNDS = ("plain", "gradient", "clouds", "stripes", "checks", "speckle", "hall", "street")
FLAT_GROUNDS = tuple(range(6))
"""`hall` and `street` are in perspective: wall or sky above the horizon, below it a chequered floor or a road."""


@dataclass(frozen=True)
class Scene:
    """N scenes of up to M objects on a canvas with x (right) and y (down) in [-1, 1].

    Attributes:
        present: N M bool.
        shape, texture: N M indices into SHAPES and TEXTURES.
        colour, colour2: N M 3 RGB in [0, 1], ground and pattern.
        grain: N M repeats of the texture per object size.
        size: N M root-mean-square-like radius in canvas units (at depth 1 where there is perspective).
        aspect: N M width over height.
        angle: N M radians, clockwise.
        x, y, z: N M centre and depth (greater is farther, always > 0). With perspective, y is the height above the
            floor on which the object stands and x, y shrink with z.
        velocity: N M 4 change per unit of time of x, y, angle and log size.
        background: N index into BACKGROUNDS; ground, ground2: N 3 its colours; ground_grain: N repeats.
        light: N 3 direction x, y and strength.
        camera: N 4 zoom, pan x, pan y, and horizon (NaN: no perspective, else its y on the canvas).
        seed: N int64 for all lattice noise.
    """

    present: torch.Tensor
    shape: torch.Tensor
    texture: torch.Tensor
    colour: torch.Tensor
    colour2: torch.Tensor
    grain: torch.Tensor
    size: torch.Tensor
    aspect: torch.Tensor
    angle: torch.Tensor
    x: torch.Tensor
    y: torch.Tensor
    z: torch.Tensor
    velocity: torch.Tensor
    background: torch.Tensor
    ground: torch.Tensor
    ground2: torch.Tensor
    ground_grain: torch.Tensor
    light: torch.Tensor
    camera: torch.Tensor
    seed: torch.Tensor

    def __len__(self) -> int:
        return len(self.seed)

    def __getitem__(self, index: slice | torch.Tensor) -> Scene:
        """The scenes at a slice, index tensor or mask."""
        return self._map(lambda value: value[index])

    def to(self, device: str | torch.device) -> Scene:
        """The same scenes on another device."""
        return self._map(lambda value: value.to(device))

    def replace(self, **fields: torch.Tensor) -> Scene:
        """A copy with other values in some fields."""
        return dataclasses.replace(self, **fields)

    def at(self, time: float) -> Scene:
        """The scenes after `time` units of motion."""
        dx, dy, spin, growth = (self.velocity * time).unbind(-1)
        return self.replace(x=self.x + dx, y=self.y + dy, angle=self.angle + spin, size=self.size * growth.exp())

    def _map(self, change) -> Scene:
        return Scene(**{f.name: change(getattr(self, f.name)) for f in dataclasses.fields(self)})


def cat(scenes: list[Scene]) -> Scene:
    """Several batches of scenes with the same number of object slots as one."""
    return Scene(**{f.name: torch.cat([getattr(s, f.name) for s in scenes]) for f in dataclasses.fields(Scene)})


def make_scene(seed: torch.Tensor, slots: int, **fields: torch.Tensor | float) -> Scene:
    """N scenes with `slots` objects from some fields; what is not given is plain, upright, still and centred.

    Args:
        seed: N int64.
        slots: number M of object slots.
        fields: fields of Scene; a number stands for the same value everywhere.
    """
    n, grey = len(seed), torch.full((len(seed), slots, 3), 0.5)
    ones, whole = torch.ones(n, slots), torch.zeros(n, slots, dtype=torch.long)
    values: dict[str, torch.Tensor] = {
        "present": torch.ones(n, slots, dtype=torch.bool),
        "shape": whole,
        "texture": whole,
        "colour": grey,
        "colour2": grey * 0,
        "grain": 3 * ones,
        "size": 0.3 * ones,
        "aspect": ones,
        "angle": 0 * ones,
        "x": 0 * ones,
        "y": 0 * ones,
        "z": ones,
        "velocity": torch.zeros(n, slots, 4),
        "background": whole[:, 0],
        "ground": grey[:, 0] * 0 + 0.8,
        "ground2": grey[:, 0] * 0 + 0.6,
        "ground_grain": 3 * ones[:, 0],
        "light": torch.zeros(n, 3),
        "camera": torch.tensor([1.0, 0.0, 0.0, float("nan")]).repeat(n, 1),
        "seed": seed,
    }
    for name, value in fields.items():
        old = values[name]
        values[name] = torch.as_tensor(value, dtype=old.dtype).expand(old.shape).clone()
    return Scene(**values)
