"""ImageNet-V2, -Sketch, -A and -R, on which a run trained on ImageNet is scored: test splits without training pictures.

    <root>/imagenetv2/imagenetv2-matched-frequency-format-val/{0 … 999}/     folders are labels of classnames.txt
    <root>/imagenet-sketch/images/n01440764/…   <root>/imagenet-adversarial/imagenet-a/…   <root>/imagenet-rendition/imagenet-r/…

Each has a copy of ImageNet's classnames.txt (github.com/KaiyangZhou/CoOp, DATASETS.md); <root>/imagenet's serves too.
ImageNet-A and -R are told apart among their own 200 classes, in the order of their folders.
"""

from __future__ import annotations

from dataclasses import dataclass

from peft_data.base import ClassificationData, no_pictures
from peft_data.coop import class_folders, class_table, find
from peft_data.errors import DataError

# Set: its folder, the folder of its class folders, classes, pictures.
SETS = {
    "imagenetv2": ("imagenetv2", "imagenetv2-matched-frequency-format-val", 1000, 10000),
    "imagenet_sketch": ("imagenet-sketch", "images", 1000, 50889),
    "imagenet_a": ("imagenet-adversarial", "imagenet-a", 200, 7500),
    "imagenet_r": ("imagenet-rendition", "imagenet-r", 200, 30000),
}
NAMES = {
    f"coop/{name}": f"test pictures only: {classes} classes, {count:,} pictures; needs its folder {folder}/"
    for name, (folder, _, classes, count) in SETS.items()
}


@dataclass(frozen=True, eq=False)
class TestData(ClassificationData):
    """A data set to be scored on: train and val are empty."""

    __test__ = False  # pytest takes classes called Test… for tests

    def __post_init__(self) -> None:
        if not len(self.test):
            raise DataError(f"{self.name} has no pictures: put them in place")


def load(name: str, root: str | None, seed: int) -> ClassificationData:
    """One set. `root` is the folder that holds the sets, or the set's own. No seed is used.

    Raises:
        DataError: the folder, classnames.txt or the folder of a class is missing.
    """
    inside, pictures, classes, count = SETS[name.removeprefix("coop/")]
    folder = find(name, inside, root)
    table = class_table(folder, folder.parent / "imagenet")
    place = folder / pictures
    if not place.is_dir():
        raise DataError(f"{name} needs the folder {place}: put the set's class folders there")
    if name == "coop/imagenetv2":
        words = sorted(table)
        labels = {str(label): label for label in range(len(words))}
    else:
        words = sorted(path.name for path in place.iterdir() if path.is_dir() and path.name in table)
        labels = {word: label for label, word in enumerate(words)}
    test = class_folders(place, labels)
    notes = [f"{name}: {len(words)} classes, published are {classes}"] if len(words) != classes else []
    notes += [f"{name}: {len(test)} pictures, published are {count}"] if len(test) != count else []
    empty = no_pictures("train"), no_pictures("val")
    return TestData(name, tuple(table[word] for word in words), *empty, test, notes=tuple(notes))
