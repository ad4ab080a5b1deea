"""A table of clips in one file: a .csv with the header `path,label`, and a column `split` if it fixes the splits.

path,label,split
videos/1.mp4,wave,train
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from peft_data.base import ClassificationData
from peft_data.errors import DataError
from peft_data.options import takes
from peft_data.tables import from_table, is_table, numbered, read_table
from peft_data.video.decoding import is_video
from peft_data.video.options import classes_of_clips, find_clip, listed_clips, with_sampling

NAMES: dict[str, str] = {}


def claims(path: Path) -> bool:
    """Whether it is a .csv file whose first row is a video or a folder."""
    if not is_table(path):
        return False
    try:
        first = read_table(path, "path", "label", "clip")[0]["path"]
    except DataError:
        return False  # told where it is opened as a table of pictures
    found = find_clip(first, [path.parent])
    return is_video(Path(first)) or (found is not None and found.is_dir())


@with_sampling()
@takes(classes_of_clips)
def load(name: str, root: str | None, seed: int, **common: Any) -> tuple[ClassificationData, bool]:
    """The table `root`. Paths are relative to its folder; labels are words or numbers.

    Raises:
        DataError: a line or column that is missing or wrong, or all clips that are not there.
    """
    file = Path(root or name).resolve()
    rows = read_table(file, "path", "label", "clip")
    classes = numbered([row["label"] for row in rows])
    number = {word: label for label, word in enumerate(classes)}
    pairs = [(row["path"], number[row["label"]]) for row in rows]
    whole = listed_clips(pairs, [file.parent], file.parent, "whole", file)
    shares = common["val"], common["test"]
    return from_table(name, file, rows, whole, classes, "split", *shares, seed), common["directional"]
