"""`world/dense/*`: drawn pictures with a class for each pixel (`peft_data.world.dense`)."""

from __future__ import annotations

from peft_data.base import ClassificationData
from peft_data.segment.masks import Masks, SegmentationData
from peft_data.world.dense import SIZE, TASKS, kept_dense

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
    task, parts, kept = kept_dense(name, NAMES, seed, size)
    return SegmentationData(name, TASKS[task][1], *parts, masks=Masks(kept["masks"]), recipe="world_dense")
