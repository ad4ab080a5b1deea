"""Chance that methods draw in training: a function of a seed and of where training is, so that a resumed run draws the same."""

import torch


def chance(seed: int, *numbers: int) -> torch.Generator:
    """A generator on the CPU, another one for each tuple of numbers."""
    mixed = seed
    for number in numbers:
        mixed = (mixed * 6_364_136_223_846_793_005 + number + 1) % 2**63
    return torch.Generator().manual_seed(mixed)
