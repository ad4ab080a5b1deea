"""`world/open/*`: drawn few-shot sets with base and new class names, for open-vocabulary models (`world/open.py`)."""

from __future__ import annotations

from peft_data.base import ClassificationData
from peft_data.errors import DataError, nearest
from peft_data.world.cache import drawn_splits
from peft_data.world.open import SETS, SIZE, SPLITS, draw_set

VERSION = 2
"""Part of the cache's key: raised whenever any drawn byte changes."""
_ABOUT = {
    "objects": "a colour and a shape, as in red ring, by lamplight",
    "patterned": "a texture and a shape, as in striped cube, close up",
    "things": "shapes, everyday things and animals, reflected in water",
    "scenes": "a thing or an animal in a landscape, in fog",
}
NAMES = {
    f"world/open/{task}": f"drawn offline: {_ABOUT[task]}; {len(names)} classes, the first half are the base classes"
    for task, (names, _) in SETS.items()
}


def load(name: str, seed: int = 0, *, size: int = SIZE) -> ClassificationData:
    """One of the sets: per class 48 pictures to train (draw the shots from them), 16 val and 48 test.

    Args:
        name: `world/open/<set>`.
        seed: the data's own seed; results are comparable only under the same one.
        size: height and width in pixels.

    Raises:
        DataError: there is no such set, or no space to keep it.
    """
    task = name.removeprefix("world/open/")
    if task not in SETS:
        raise DataError(f"there is no set {name!r} in the drawn world{nearest(name, NAMES)}")
    key = f"world/open-v{VERSION}/{task}-{size}px-seed{seed}"
    parts = drawn_splits(key, SPLITS, lambda split, each: draw_set(task, split, each, seed, size))
    return ClassificationData(f"world/open/{task}", SETS[task][0], *parts, recipe="world")
