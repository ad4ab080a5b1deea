"""`world/detect/*`: the pictures of `world/dense/*` with a box around each thing."""

from __future__ import annotations

import torch

from peft_data.base import ClassificationData
from peft_data.detect.boxes import DetectionData
from peft_data.world.dense import SIZE, TASKS, kept_dense

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
    task, parts, kept = kept_dense(name, NAMES, seed, size)
    boxes = []
    for place, kind in zip(kept["boxes"].float(), kept["kinds"], strict=True):
        seen = (place[:, 2:] > place[:, :2]).all(1)
        number = (kind - GROUND[task]).float()[:, None]
        boxes.append(torch.cat([number, place / size, torch.zeros_like(number)], 1)[seen])
    return DetectionData(name, TASKS[task][1][GROUND[task] :], *parts, boxes=tuple(boxes), recipe="world_dense")
