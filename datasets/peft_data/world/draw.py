"""Seeded draws, colours and lattice noise: where all chance of the drawn world comes from."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from torch.nn import functional as F

HUES = 12
"""Hue is drawn from 12 sectors; the tasks use the upper half of each sector, pretraining the lower half."""


class Draw:
    """Draws for one block of pictures. The key names the block, so blocks do not depend on each other.

    Only `torch.rand`, `randint` and `randperm` on the CPU generator are used: their streams are the same on every
    machine (`randn` is not: its vectorised form differs between processors).

    Args:
        key: anything with a stable `str`, for example `"count", "train", 0, 3`; `"pretrain"` first means the
            pretraining part, whose palette is disjoint from that of the tasks.
    """

    def __init__(self, *key: object):
        digest = hashlib.sha256("/".join(map(str, key)).encode()).digest()
        self.generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
        self.pretraining = key[0] == "pretrain"

    def uniform(self, *shape: int, low: float = 0.0, high: float = 1.0) -> torch.Tensor:
        """Float32 draws from [low, high)."""
        return torch.rand(shape, generator=self.generator) * (high - low) + low

    def ints(self, *shape: int, high: int, low: int = 0) -> torch.Tensor:
        """Int64 draws from low … high - 1."""
        return torch.randint(low, high, shape, generator=self.generator)

    def choose(self, *shape: int, among: Sequence[int]) -> torch.Tensor:
        """Int64 draws from the given values."""
        return torch.tensor(list(among))[self.ints(*shape, high=len(among))]

    def chance(self, *shape: int, p: float) -> torch.Tensor:
        """Bool draws, true with probability p."""
        return self.uniform(*shape) < p

    def labels(self, n: int, classes: int) -> torch.Tensor:
        """N labels, as balanced as N allows, in random order."""
        return (torch.randperm(n, generator=self.generator) % classes).long()

    def seeds(self, n: int) -> torch.Tensor:
        """N int64 seeds for the lattice noise of N pictures."""
        return self.ints(n, high=2**31 - 1)

    def colour(self, *shape: int, low: float = 0.3) -> torch.Tensor:
        """RGB colours in [0, 1], shape … 3, of this part's palette; `low` is the least value (brightness)."""
        half = 0.0 if self.pretraining else 0.5
        hue = (self.ints(*shape, high=HUES) + half + 0.5 * self.uniform(*shape)) / HUES
        return hsv(hue, self.uniform(*shape, low=0.1), self.uniform(*shape, low=low))

    def pair(self, *shape: int, gap: float = 0.3) -> tuple[torch.Tensor, torch.Tensor]:
        """Two colours (… 3 each) whose luminance differs by about `gap` or more, which is lighter by chance."""
        first = self.colour(*shape, low=0.15)
        return first, apart(first, self.colour(*shape, low=0.15), gap)


def hsv(hue: torch.Tensor, saturation: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """HSV in [0, 1] (any shape) to RGB (… 3)."""
    k = (torch.tensor([5.0, 3.0, 1.0], device=hue.device) + hue[..., None] * 6) % 6
    ramp = torch.minimum(k, 4 - k).clamp(0, 1)
    return value[..., None] * (1 - saturation[..., None] * ramp)


def luminance(rgb: torch.Tensor) -> torch.Tensor:
    """Rec. 601 luminance of … 3."""
    return rgb @ rgb.new_tensor([0.299, 0.587, 0.114])


def apart(reference: torch.Tensor, colour: torch.Tensor, gap: float = 0.3) -> torch.Tensor:
    """`colour` (… 3), lightened or darkened until its luminance is `gap` away from that of `reference`."""
    base, light = luminance(reference)[..., None], luminance(colour)[..., None]
    up = torch.where(base + gap > 0.95, False, torch.where(base - gap < 0.05, True, light > base))
    target = torch.where(up, torch.maximum(light, base + gap), torch.minimum(light, base - gap)).clamp(0.02, 0.98)
    darker = colour * (target / light.clamp(min=1e-3))
    lighter = 1 - (1 - colour) * ((1 - target) / (1 - light).clamp(min=1e-3))
    return torch.where(target < light, darker, lighter).clamp(0, 1)


def scramble(value: torch.Tensor) -> torch.Tensor:
    """A 32-bit integer hash (int64 in, int64 in [0, 2^32) out), exact on every machine."""
    value = value & 0xFFFFFFFF
    for factor in (0x7FEB352D, 0x846CA68B):
        value = ((value ^ (value >> 16)) * factor) & 0xFFFFFFFF
    return value ^ (value >> 16)


def hashed(seed: torch.Tensor, salt: int, *coordinates: torch.Tensor) -> torch.Tensor:
    """Uniform numbers in [0, 1) that depend on the picture's seed, a salt and integer coordinates."""
    value = scramble(seed * 31 + salt * 7919)
    for coordinate in coordinates:
        value = scramble(value + coordinate * 0x9E3779B1)
    return value.float() / 2**32


def lattice(seed: torch.Tensor, cells: int, salt: int) -> torch.Tensor:
    """Seeds N to uniform numbers N cells cells."""
    index = torch.arange(cells * cells, device=seed.device)
    return hashed(seed[:, None], salt, index[None]).view(-1, cells, cells)


def noise(seed: torch.Tensor, size: int, cells: int, salt: int = 0, octaves: int = 1) -> torch.Tensor:
    """Smooth value noise over whole pictures, N size size, about in [0, 1]; the same field at every size."""
    total, weight = torch.zeros(()), 0.0
    for octave in range(octaves):
        grid = lattice(seed, cells * 2**octave + 1, salt + 101 * octave)[:, None]
        field = F.interpolate(grid, size=(size, size), mode="bicubic", align_corners=True)[:, 0]
        total, weight = total.to(field.device) + field / 2**octave, weight + 1 / 2**octave
    return (total / weight).clamp(0, 1)


def pixel_grid(size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Pixel centres: x (to the right) and y (downwards), each size size, in [-1, 1]."""
    line = (torch.arange(size) * 2 + 1) / size - 1
    return line[None].expand(size, size), line[:, None].expand(size, size)
