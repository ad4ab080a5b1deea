"""`world/pairs`: drawn pictures, each said in a sentence of plain English (`peft_data.world.captioned`)."""

from __future__ import annotations

import random

import torch

from peft_data.base import Pictures
from peft_data.pairs.base import PairData, Pairs, pairs_of
from peft_data.world.cache import cached
from peft_data.world.captioned import BLOCK, caption, captioned_block

VERSION = 1
"""Part of the cache's key: raised whenever any drawn byte changes."""
NAMES = {
    "world/pairs": "drawn offline: one or two things on a ground, a sentence each; 2,000 to train, 500 val, 500 test"
}
BLOCKS = {"train": 4, "val": 1, "test": 1}


def load(name: str, seed: int, *, size: int = 48) -> PairData:
    """Pictures and captions drawn from the seed: all that is seen is said (for val and test), or some of it, in words that vary
    (three sentences a training picture).

    Args:
        size: height and width in pixels.

    Raises:
        DataError: no space to keep it.
    """
    parts = {split: _part(split, blocks, seed, size) for split, blocks in BLOCKS.items()}
    return PairData(name, parts["train"], parts["val"], parts["test"])


def _part(split: str, blocks: int, seed: int, size: int) -> Pairs:
    def make() -> dict[str, torch.Tensor]:
        drawn = [captioned_block(block, f"pairs {split}", seed, size) for block in range(blocks)]
        return {"pictures": torch.cat([one for one, _ in drawn]), "labels": torch.cat([two for _, two in drawn])}

    kept = cached(f"world/pairs-v{VERSION}/{split}-{blocks * BLOCK}-{size}px-seed{seed}", make)
    chance = random.Random(seed)
    if split == "train":
        captions = [tuple(dict.fromkeys(caption(row, chance) for _ in range(3))) for row in kept["labels"]]
    else:
        captions = [(caption(row),) for row in kept["labels"]]
    return pairs_of(Pictures(kept["pictures"], torch.arange(len(captions)), split=split), captions)
