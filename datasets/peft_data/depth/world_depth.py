"""`world/depth/*`: the rooms of `world/dense/rooms` with the depth of each pixel."""

from __future__ import annotations

from peft_data.base import ClassificationData
from peft_data.depth.maps import DepthData, Depths
from peft_data.world.dense import SIZE, kept_dense

NAMES = {"world/depth/rooms": "drawn offline, a depth a pixel: rooms in perspective, 1 to 8"}


def load(name: str, seed: int = 0, *, size: int = SIZE) -> ClassificationData:
    """800 + 200 pictures to train and choose on, 200 to test on; walls are at 8.

    Args:
        name: `world/depth/rooms`.
        seed: the data's own seed; results are comparable only under the same one.
        size: height and width in pixels.

    Raises:
        DataError: there is no such task, or no space to keep it.
    """
    _, parts, kept = kept_dense(name, NAMES, seed, size, depths=True)
    return DepthData(name, ("depth",), *parts, maps=Depths(kept["depths"]), recipe="world_dense")
