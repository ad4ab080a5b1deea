"""`world/detect/*`: the pictures of `world/dense/*` with a box around each thing."""

from __future__ import annotations

import torch

from peft_data.base import ClassificationData, Pictures
from peft_data.detect.boxes import DetectionData
from peft_data.errors import DataError, nearest
from peft_data.world.cache import cached
from peft_data.world.dense import SIZE, SPLITS, TASKS, draw_dense

VERSION = 2
"""Part of the cache's key: raised whenever any drawn byte changes."""
GROUND = {"things": 1, "rooms": 2, "patterns": 1}
"""How many of a task's first classes are no things."""
NAMES = {
    f"world/detect/{task}": f"drawn offline, boxes: {', '.join(TASKS[task][1][first:][:4])} … ({len(TASKS[task][1]) - first})"
    for task, first in GROUND.items()
}


def load(name: str, seed: int = 0, *, size: int = SIZE) -> ClassificationData:
    """One of the three: 800 + 200 pictures to train and choose on, 200 to test on.

    Args:
        name: `world/detect/<task>`.
        seed: the data's own seed; results are comparable only under the same one.
        size: height and width in pixels.

    Raises:
        DataError: there is no such task, or no space to keep it.
    """
    task = name.removeprefix("world/detect/")
    if task not in TASKS:
        raise DataError(f"there is no task {name!r} in the drawn world{nearest(name, NAMES)}")

    def make() -> dict[str, torch.Tensor]:
        drawn = {split: draw_dense(task, split, count, seed, size) for split, count in SPLITS.items()}
        return {f"{split}.{key}": each[key] for split, each in drawn.items() for key in ("pictures", "boxes", "kinds")}

    kept, start, parts, boxes = cached(f"world/detect-v{VERSION}/{task}-{size}px-seed{seed}", make), 0, [], []
    for split, count in SPLITS.items():
        parts.append(Pictures(kept[f"{split}.pictures"], torch.arange(start, start + count), split=split))
        start += count
        for place, kind in zip(kept[f"{split}.boxes"].float(), kept[f"{split}.kinds"], strict=True):
            seen = (place[:, 2:] > place[:, :2]).all(1)
            number = (kind - GROUND[task]).float()[:, None]
            boxes.append(torch.cat([number, place / size, torch.zeros_like(number)], 1)[seen])
    return DetectionData(
        f"world/detect/{task}", TASKS[task][1][GROUND[task] :], *parts, boxes=tuple(boxes), recipe="world_dense"
    )
