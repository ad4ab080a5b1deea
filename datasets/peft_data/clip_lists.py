"""Lists of clips, `path label` a line, divided by a blank, a comma or a tab; a middle column (frames) may stand between.

train.csv val.csv test.csv (VideoMAE, AdaptFormer) · kinetics400_train_list_videos.txt … (mmaction) · train.txt val.txt
"""

from __future__ import annotations

import re
from pathlib import Path

from peft_data.base import ClassificationData, Pictures, no_pictures
from peft_data.errors import DataError
from peft_data.lists import names_from_paths
from peft_data.splits import tenth_as_val
from peft_data.video.decoding import SUFFIXES
from peft_data.video.options import first_of, listed_clips, with_sampling

NAMES = {
    "kinetics400": "Kinetics-400 in lists `path label`: set data.root to their folder",
}
FILES = {
    split: (f"{split}.csv", f"*_{split}_list_videos.txt", f"*_{split}_list_rawframes.txt", f"{split}_list.txt",
            f"{split}_videos.txt")
    for split in ("train", "val", "test")
}  # fmt: skip

_LAST = re.compile(r"(.*\S)[,\s]\s*([^\s,]+)")


def claims(path: Path) -> bool:
    """Whether it is a folder with a training list of clips."""
    file = first_of(path, FILES["train"]) if path.is_dir() else None
    if file is None:
        return False
    with open(file, encoding="utf-8", errors="replace") as text:
        row = _split(text.readline())
    return row is not None and (row[0].lower().endswith(tuple(SUFFIXES)) or (path / row[0]).is_dir())


@with_sampling(sampling="dense", stride=16)
def load(
    name: str,
    root: str | None,
    seed: int,
    *,
    videos: str = "",
    class_names: str = "",
    directional: bool = False,
) -> tuple[ClassificationData, bool]:
    """The lists in the folder `root`. Without a test list, val is the test set and a tenth of train is val.

    AdaptFormer's own lists hold the validation set in test.csv and the test set in val.csv; here files mean what they are
    called.

    Args:
        videos: Folder that the lists' paths start from, by default the lists' own.
        class_names: File with a class name a line; by default folders name the classes.
        directional: Whether a mirrored clip may belong to another class.

    Raises:
        DataError: no training list, a line that cannot be read, or all clips that are listed and not there.
    """
    folder = Path(root or name).expanduser().resolve()
    start = Path(videos).expanduser() if videos else folder
    parts: dict[str, Pictures] = {}
    for split, patterns in FILES.items():
        file = first_of(folder, patterns)
        if file is None and split == "train":
            raise DataError(f"{folder} has no list of training clips: it needs {' or '.join(patterns[:2])}")
        rows = _rows(file) if file else []
        parts[split] = listed_clips(rows, [start, folder], start, split, file) if file else no_pictures(split)
    notes = []
    if not len(parts["test"]):
        parts["test"], parts["val"] = parts["val"], no_pictures("val")
        notes.append(f"{name} has no test list: its val list is the test set, and val a tenth of train")
    if not len(parts["val"]):
        parts["train"], parts["val"] = tenth_as_val(parts["train"], seed)
    count = max(int(part.labels.max()) + 1 for part in parts.values() if len(part))
    names = _class_names(Path(class_names).expanduser(), count) if class_names else None
    classes = names or names_from_paths(list(parts.values()), count)
    data = ClassificationData(name, classes, parts["train"], parts["val"], parts["test"], notes=tuple(notes))
    return data, directional


def _split(line: str) -> tuple[str, str] | None:
    """Path and label of a line: the last word is the label; behind a path that is no video a number of frames may stand."""
    found = _LAST.fullmatch(line.strip())
    if not found:
        return None
    path, label = found[1].rstrip(", \t"), found[2]
    inner = _LAST.fullmatch(path)
    if inner and inner[2].isdecimal() and not path.lower().endswith(tuple(SUFFIXES)):
        path = inner[1].rstrip(", \t")
    return path, label


def _rows(file: Path) -> list[tuple[str, int]]:
    rows = []
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{file} cannot be read as a list of clips ({error}): give a text file") from error
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        row = _split(line)
        if row is None:
            raise DataError(f"line {number} of {file} has no label: each line must be `path label`, not {line!r}")
        if not row[1].isdecimal():
            raise DataError(f"line {number} of {file} has the label {row[1]!r}: labels must be whole numbers from 0")
        rows.append((row[0], int(row[1])))
    if not rows:
        raise DataError(f"{file} lists no clip: each line must be `path label`")
    return rows


def _class_names(file: Path, count: int) -> tuple[str, ...]:
    if not file.is_file():
        raise DataError(f"there is no file {file} with class names: check data.class_names")
    names = tuple(line.strip() for line in file.read_text(encoding="utf-8").splitlines() if line.strip())
    if len(names) < count:
        raise DataError(f"{file} has {len(names)} class names but the lists have {count} classes: add the missing ones")
    return names
