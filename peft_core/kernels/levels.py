"""Weights of a few bits a number: the nearest of 2^bits levels of a normal distribution, times their block's scale, which is
itself one of few bits. Codes of any width in bytes, and back."""

import math
from collections.abc import Sequence
from functools import cache
from typing import Annotated

import torch
import torch.nn.functional as F
from torch import Tensor

PLANES = {1: (1,), 2: (2,), 3: (2, 1), 4: (4,), 8: (8,)}
"""Bits of a code -> what of it lies together: three are two and one."""
_LAST = 0.9677083
"""The quantile of the outermost levels of NF4 (QLoRA)."""


@cache
def normal_levels(bits: int) -> Tensor:
    """2^bits quantiles of the normal distribution from −1 to 1, of which one is 0 (QLoRA's construction, for any bits)."""
    below = torch.linspace(1 - _LAST, 0.5, 2 ** (bits - 1), dtype=torch.float64)
    above = torch.linspace(0.5, _LAST, 2 ** (bits - 1) + 1, dtype=torch.float64)
    found = torch.special.ndtri(torch.cat((below[:-1], above)))
    found[len(below) - 1] = 0.0
    return (found / found[-1]).float()


def in_bytes(codes: Annotated[Tensor, "rows width"], bits: int) -> Annotated[Tensor, "rows bytes"]:
    """Codes below 2^bits, 8 / bits of them a byte: a row's parts, one behind the other, share its bytes."""
    parts, low = [], 0
    for plane in PLANES[bits]:
        slots = 8 // plane
        part = ((codes >> low) & (2**plane - 1)).view(len(codes), slots, -1)
        shifts = torch.arange(slots, device=codes.device, dtype=torch.uint8).view(-1, 1) * plane
        parts.append((part << shifts).sum(1, dtype=torch.uint8))
        low += plane
    return torch.cat(parts, 1)


def out_of_bytes(data: Annotated[Tensor, "rows bytes"], bits: int) -> Annotated[Tensor, "rows width"]:
    """What `in_bytes` was given."""
    if bits == 8:
        return data
    width, low, start = data.shape[1] * 8 // bits, 0, 0
    codes = torch.zeros(len(data), width, dtype=torch.uint8, device=data.device)
    for plane in PLANES[bits]:
        slots = 8 // plane
        size = width // slots
        part = data[:, start : start + size]
        for slot in range(slots):
            here = codes[:, slot * size : (slot + 1) * size]
            here |= ((part >> (plane * slot)) & (2**plane - 1)) << low
        low, start = low + plane, start + size
    return codes


def to_levels(
    weight: Annotated[Tensor, "out in"], bits: int, of_scales: int, size: int, group: int
) -> tuple[Tensor, ...]:
    """Codes of a weight in blocks of `size`, those of the blocks' scales above the least of them in `of_scales` bits, the largest
    of each `group` of these, and that least scale: LQ-LoRA's double quantisation."""
    most = weight.float().view(-1, group, size).abs().amax(2)
    least = most.min()
    top = (most - least).amax(1, keepdim=True)
    steps = 2**of_scales - 1
    small = ((most - least) * (steps / top.clamp(min=torch.finfo(top.dtype).tiny))).round_().to(torch.uint8)
    scales = _scales(small, top, least, steps).clamp(min=torch.finfo(top.dtype).tiny)
    levels = normal_levels(bits).to(weight.device)
    edges = (levels[1:] + levels[:-1]) / 2
    codes = torch.bucketize((weight.float().view(*scales.shape, size) / scales.unsqueeze(-1)), edges)
    flat = F.pad(small.flatten(), (0, -small.numel() % 8)).view(1, -1)
    return in_bytes(codes.to(torch.uint8).view_as(weight), bits), in_bytes(flat, of_scales), top.flatten(), least


def from_levels(
    tensors: Sequence[Tensor], about: Sequence[int], shape: tuple[int, int], dtype: torch.dtype
) -> Annotated[Tensor, "out in"]:
    """The weight that `to_levels(…, *about)` made these of."""
    (codes, packed, top, least), (bits, of_scales, size, group) = tensors, about
    small = out_of_bytes(packed, of_scales).flatten()[: math.prod(shape) // size].view(-1, group)
    scales = _scales(small, top.float().unsqueeze(1), least.float(), 2**of_scales - 1)
    levels = normal_levels(bits).to(codes.device, dtype)
    numbers = levels[out_of_bytes(codes, bits).int()].view(*scales.shape, size)
    return numbers.mul_(scales.to(dtype).unsqueeze(-1)).view(shape)


def _scales(small: Tensor, top: Tensor, least: Tensor, steps: int) -> Annotated[Tensor, "groups group"]:
    return least + small * (top / steps)


def bits_a_number(bits: int, of_scales: int, size: int, group: int) -> float:
    """What a number of `to_levels` takes, its share of the scales counted."""
    return bits + of_scales / size + 32 / (size * group)
