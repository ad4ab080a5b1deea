"""Lists of clips, `path label` a line, divided by a blank, a comma or a tab; a middle column (frames) may stand between.

train.csv val.csv test.csv (VideoMAE, AdaptFormer) · kinetics400_train_list_videos.txt … (mmaction) · train.txt val.txt
"""

from __future__ import annotations

import re
from pathlib import Path

from peft_data.base import ClassificationData, Pictures, no_pictures
from peft_data.errors import DataError, nearest
from peft_data.findings import with_findings
from peft_data.lists import is_number, is_there, names_from_paths
from peft_data.splits import tenth_as_val
from peft_data.texts import is_utf16, read_lines
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

_PATH_WORDS = ("path", "file", "filename", "file_name", "video", "clip", "name", "video_path", "video_name")
_LABEL_WORDS = ("label", "labels", "class", "target", "y", "category", "class_id", "label_id")
_LAST = re.compile(r"(.*\S)[,\s]\s*([^\s,]+)")


def claims(path: Path) -> bool:
    """Whether it is a folder with a training list of clips."""
    file = first_of(path, FILES["train"]) if path.is_dir() else None
    if file is None:
        return False
    if is_utf16(file):
        return True  # told where it is read
    with open(file, encoding="utf-8-sig", errors="replace") as text:
        rows = [_split(text.readline(1 << 16)), _split(text.readline(1 << 16))]
    row = rows[1] if rows[0] and _is_header(rows[0]) else rows[0]
    return row is not None and (row[0].lower().endswith(tuple(SUFFIXES)) or is_there(path / row[0], folders_too=True))


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
    files = {split: first_of(folder, patterns) for split, patterns in FILES.items()}
    if files["train"] is None:
        raise DataError(f"{folder} has no list of training clips: it needs {' or '.join(FILES['train'][:2])}")
    rows = {split: _rows(file) if file else [] for split, file in files.items()}
    words = _words(rows, files)
    parts: dict[str, Pictures] = {}
    for split, file in files.items():
        pairs = [(path, words.index(word) if words else int(word)) for path, word in rows[split]]
        parts[split] = listed_clips(pairs, [start, folder], start, split, file) if file else no_pictures(split)
    notes = []
    if not len(parts["test"]):
        parts["test"], parts["val"] = parts["val"], no_pictures("val")
        notes.append(f"{name} has no test list: its val list is the test set, and val a tenth of train")
    drawn = () if len(parts["val"]) else ("val",)
    if drawn:
        parts["train"], parts["val"] = tenth_as_val(parts["train"], seed)
    count = max(int(part.labels.max()) + 1 for part in parts.values() if len(part))
    names = _class_names(Path(class_names).expanduser(), count) if class_names else None
    classes = names or words or names_from_paths(list(parts.values()), count)
    data = ClassificationData(name, classes, parts["train"], parts["val"], parts["test"], notes=tuple(notes))
    return with_findings(data, drawn=drawn), directional


def _is_header(row: tuple[str, str]) -> bool:
    return row[0].strip("\"'").lower() in _PATH_WORDS and row[1].strip("\"'").lower() in _LABEL_WORDS


def _words(rows: dict[str, list[tuple[str, str]]], files: dict[str, Path | None]) -> tuple[str, ...]:
    """The classes where lists name them by words; none where they number them."""
    numbers = all(is_number(word) for own in rows.values() for _, word in own)
    if not numbers and (odd := [word for _, word in rows["train"] if is_number(word)]):
        raise DataError(
            f"{files['train']} has words and numbers such as {odd[0]} for labels: labels must be whole numbers from 0, or "
            "all of them words"
        )
    words = tuple(sorted({word for _, word in rows["train"]}))
    for split, own in rows.items():
        if odd := [word for _, word in own if word not in words]:
            raise DataError(
                f"{files[split]} has the class {odd[0]!r}, which train has not{nearest(odd[0], words)}: name it as in train"
            )
    return () if numbers else words


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


def _rows(file: Path) -> list[tuple[str, str]]:
    """The rows of a list; under a header labels may be words."""
    rows, headed = [], False
    for number, line in read_lines(file, "a list of clips"):
        row = _split(line)
        if row is None:
            raise DataError(f"line {number} of {file} has no label: each line must be `path label`, not {line!r}")
        if not rows and _is_header(row):
            headed = True
            continue
        if not headed and not is_number(row[1]):
            raise DataError(f"line {number} of {file} has the label {row[1]!r}: labels must be whole numbers from 0")
        rows.append(row)
    if not rows:
        raise DataError(f"{file} lists no clip: each line must be `path label`")
    return rows


def _class_names(file: Path, count: int) -> tuple[str, ...]:
    if not file.is_file():
        raise DataError(f"there is no file {file} with class names: check data.class_names")
    names = tuple(line for _, line in read_lines(file, "a list of class names"))
    if len(names) < count:
        raise DataError(f"{file} has {len(names)} class names but the lists have {count} classes: add the missing ones")
    return names
