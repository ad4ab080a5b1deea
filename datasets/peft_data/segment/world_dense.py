"""`world/dense/*`: drawn pictures with a class for each pixel (`peft_data.world.dense`)."""

from __future__ import annotations

import torch

from peft_data.base import ClassificationData, Pictures
from peft_data.errors import DataError, nearest
from peft_data.segment.masks import Masks, SegmentationData
from peft_data.world.cache import cached
from peft_data.world.dense import SIZE, SPLITS, TASKS, draw_dense

VERSION = 2
"""Part of the cache's key: raised whenever any drawn byte changes."""
NAMES = {
    f"world/dense/{task}": f"drawn offline, a class a pixel: {', '.join(classes[:4])} … ({len(classes)})"
    for task, (_, classes) in TASKS.items()
}


def load(name: str, seed: int = 0, *, size: int = SIZE) -> ClassificationData:
    """One of the three: 800 + 200 pictures to train and choose on, 200 to test on.

    Args:
        name: `world/dense/<task>`.
        seed: the data's own seed; results are comparable only under the same one.
        size: height and width in pixels.

    Raises:
        DataError: there is no such task, or no space to keep it.
    """
    task = name.removeprefix("world/dense/")
    if task not in TASKS:
        raise DataError(f"there is no task {name!r} in the drawn world{nearest(name, NAMES)}")

    def make() -> dict[str, torch.Tensor]:
        drawn = {split: draw_dense(task, split, count, seed, size) for split, count in SPLITS.items()}
        return {f"{split}.{key}": each[key] for split, each in drawn.items() for key in ("pictures", "masks")}

    kept, start, parts = cached(f"world/dense-v{VERSION}/{task}-{size}px-seed{seed}", make), 0, []
    for split, count in SPLITS.items():
        parts.append(Pictures(kept[f"{split}.pictures"], torch.arange(start, start + count), split=split))
        start += count
    masks = Masks(torch.cat([kept[f"{split}.masks"] for split in SPLITS]))
    return SegmentationData(f"world/dense/{task}", TASKS[task][1], *parts, masks=masks, recipe="world_dense")
