"""Chance that methods draw in training: a function of a seed and of where training is, so that a resumed run draws the same."""

import torch
from torch import Tensor


def chance(seed: int, *numbers: int) -> torch.Generator:
    """A generator on the CPU, another one for each tuple of numbers."""
    mixed = seed
    for number in numbers:
        mixed = (mixed * 6_364_136_223_846_793_005 + number + 1) % 2**63
    return torch.Generator().manual_seed(mixed)


def uniform(key: Tensor, shape: torch.Size, dtype: torch.dtype) -> Tensor:
    """Numbers in [0, 1), multiples of 2⁻²⁴, that are a function of a whole number and of their place, on its device and without a
    generator: a compiled graph draws them as well, and nobody else's draws move."""
    bits = _mixed(torch.arange(shape.numel(), dtype=torch.int32, device=key.device))
    bits = _mixed(bits ^ _mixed((key & 0x7FFFFFFF).to(torch.int32)) ^ (key >> 31 & 0x7FFFFFFF).to(torch.int32))
    return (bits >> 8 & 0xFFFFFF).to(dtype).mul_(2.0**-24).view(shape)


def _mixed(bits: Tensor) -> Tensor:
    """Chris Wellons' lowbias32, a permutation of 32-bit numbers that leaves no pattern of theirs; in place."""
    for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B - (1 << 32))):
        bits.bitwise_xor_(bits >> shift & (1 << 32 - shift) - 1).mul_(factor)
    return bits.bitwise_xor_(bits >> 16 & 0xFFFF)
