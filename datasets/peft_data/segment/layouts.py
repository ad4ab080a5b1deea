"""What the layouts of masks share: names of classes, and the data set of pairs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from peft_data.annotations.beside import Pair, refuse_other_sizes, split_pairs
from peft_data.base import ClassificationData
from peft_data.findings import with_findings
from peft_data.segment.masks import IGNORED, Colour, Masks, SegmentationData, read_classes
from peft_data.texts import read_lines

CLASSES = ("classes.txt", "labels.txt", "labelmap.txt", "class_dict.csv", "classes.csv")
"""Files that may name the classes."""
ALSO = ("_mask", "_seg", "_label")
"""What a mask's name may have behind its picture's."""


def classes_in(folder: Path) -> tuple[tuple[str, ...], dict[Colour, int] | None]:
    """What a file of the folder says of the classes; nothing where there is none."""
    file = next((folder / name for name in CLASSES if (folder / name).is_file()), None)
    return ((), None) if file is None else read_classes(file, read_lines(file, "names of classes"))


def segmentation(
    name: str, root: Path, parts: Mapping[str, list[Pair]], classes: tuple[str, ...],
    colours: Mapping[Colour, int] | None, val: float, test: float, seed: int, shift: int = 0,
) -> ClassificationData:  # fmt: skip
    """The data set of pairs by split; `train` alone is split by the seed. Without names the classes are as many as the training
    masks hold.

    Raises:
        DataError: masks of another size than their pictures, or one that cannot be read.
    """
    three, drawn, more = split_pairs(parts, root, val, test, seed)
    whole = [pair for pairs in parts.values() for pair in pairs]
    refuse_other_sizes(whole)
    masks, notes = Masks([mask for _, mask in whole], colours, shift), []
    if not classes:
        most = max(int(mask[mask != IGNORED].max(initial=0)) for mask in map(masks.read, range(len(parts["train"]))))
        classes = tuple(f"class {number + shift}" for number in range(max(2, most + 1)))
        notes.append(f"the classes have no names: list {len(classes)} in classes.txt, one a line")
    data = SegmentationData(Path(name).stem, classes, *three, masks=masks)
    return with_findings(data, [*notes, *more], drawn=drawn)
