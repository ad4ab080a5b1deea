"""Generators whose state is a function of whole numbers."""

from __future__ import annotations

import torch


def generator_of(*numbers: int) -> torch.Generator:
    """A generator whose state is a function of these whole numbers, e.g. (seed, step)."""
    state = 0x9E3779B97F4A7C15
    for number in numbers:  # splitmix64's finalizer, so that near numbers give unrelated seeds
        state = (state + number) * 0xBF58476D1CE4E5B9 & (1 << 64) - 1
        state = (state ^ state >> 30) * 0x94D049BB133111EB & (1 << 64) - 1
        state ^= state >> 31
    return torch.Generator().manual_seed(state)
