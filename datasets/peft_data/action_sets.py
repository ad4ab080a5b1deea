"""HMDB51, UCF101 and Diving48 with the split lists that their authors publish."""

from __future__ import annotations

from pathlib import Path

from peft_data.base import ClassificationData
from peft_data.errors import DataError
from peft_data.lists import is_number, readable
from peft_data.splits import tenth_as_val
from peft_data.texts import read_json, read_lines
from peft_data.video.options import first_of, listed_clips, with_sampling

NAMES = {
    "hmdb51": "HMDB51, three splits: set data.root to the folder with its class folders and *_test_split1.txt files",
    "ucf101": "UCF101, three splits: set data.root to the folder with its class folders and trainlist01.txt",
    "diving48": "Diving48 v2: set data.root to the folder with Diving48_V2_train.json and rgb/",
}
Rows = list[tuple[str, int]]


@with_sampling()
def load(
    name: str,
    root: str | None,
    seed: int,
    *,
    split: int = 1,
) -> tuple[ClassificationData, bool]:
    """One of the sets in `root`; a tenth of train is val.

    Args:
        split: Which of the published splits: 1, 2 or 3 (HMDB51, UCF101).

    Raises:
        DataError: lists that are missing or damaged, or all clips that are listed and not there.
    """
    folder = Path(root or name).expanduser().resolve()
    if split not in (1, 2, 3):
        raise DataError(f"{name} has the splits 1, 2 and 3, not {split}")
    read = {"hmdb51": _hmdb51, "ucf101": _ucf101, "diving48": _diving48}[name]
    classes, source, rows = read(folder, split)
    folders = [folder, folder / "rgb", folder / "videos", folder / "UCF-101", folder / "hmdb51_org"]
    train, test = (listed_clips(rows[part], folders, folder, part, source) for part in ("train", "test"))
    train, val = tenth_as_val(train, seed)
    return ClassificationData(name, classes, train, val, test), name == "diving48"


def _hmdb51(folder: Path, split: int) -> tuple[tuple[str, ...], Path, dict[str, Rows]]:
    """`brush_hair_test_split1.txt`: a line `video.avi 1`; 1 is train, 2 test, 0 neither."""
    ending = f"_test_split{split}.txt"
    files = sorted(folder.rglob(f"*{ending}"))
    if not files:
        raise DataError(f"{folder} has no files *{ending}: put the split lists of HMDB51 beside its class folders")
    rows: dict[str, Rows] = {"train": [], "test": []}
    names = [file.name.removesuffix(ending) for file in files]
    for label, (file, name) in enumerate(zip(files, names, strict=True)):
        for number, line in read_lines(file, "a list of clips"):
            words = line.split()
            if len(words) != 2 or words[1] not in ("0", "1", "2"):
                raise DataError(f"line {number} of {file} must be `video.avi 0|1|2`, not {line!r}")
            if words[1] != "0":
                rows["train" if words[1] == "1" else "test"].append((f"{name}/{words[0]}", label))
    return tuple(map(readable, names)), files[0].parent, rows


def _ucf101(folder: Path, split: int) -> tuple[tuple[str, ...], Path, dict[str, Rows]]:
    """`trainlist01.txt`: `Class/video.avi 1`, labels from 1; `testlist01.txt` without labels; `classInd.txt`: `1 Class`."""
    lists = {
        part: first_of(folder, (f"{part}list0{split}.txt", f"*/{part}list0{split}.txt")) for part in ("train", "test")
    }
    index = first_of(folder, ("classInd.txt", "*/classInd.txt"))
    if index is None or None in lists.values():
        raise DataError(
            f"{folder} needs classInd.txt, trainlist0{split}.txt and testlist0{split}.txt of UCF101's lists"
        )
    number: dict[str, int] = {}
    for place, line in read_lines(index, "a list of classes"):
        words = line.split()
        if len(words) != 2 or not is_number(words[0]):
            raise DataError(f"line {place} of {index} must be `1 Class`, not {line!r}")
        number[words[1]] = int(words[0]) - 1
    rows: dict[str, Rows] = {}
    for part, file in lists.items():
        assert file is not None
        names = [line.split()[0] for _, line in read_lines(file, "a list of clips")]
        unknown = [name for name in names if name.partition("/")[0] not in number]
        if unknown:
            raise DataError(f"{file} lists {unknown[0]}, whose folder is no class of {index}")
        rows[part] = [(name, number[name.partition("/")[0]]) for name in names]
    return tuple(sorted(number, key=number.__getitem__)), index, rows


def _diving48(folder: Path, split: int) -> tuple[tuple[str, ...], Path, dict[str, Rows]]:
    """`Diving48_V2_train.json`: a list of {"vid_name", "label"}; `Diving48_vocab.json`: the words of each class."""
    rows: dict[str, Rows] = {}
    for part in ("train", "test"):
        file = first_of(folder, (f"Diving48_V2_{part}.json", f"Diving48_{part}.json"))
        if file is None:
            raise DataError(f"{folder} has no Diving48_V2_{part}.json: put the published lists there")
        try:
            rows[part] = [(str(entry["vid_name"]), int(entry["label"])) for entry in read_json(file)]
        except (KeyError, TypeError) as error:
            raise DataError(f"{file} is damaged ({error}): fetch it again") from error
    vocabulary = folder / "Diving48_vocab.json"
    count = max(label for part in rows.values() for _, label in part) + 1
    words = read_json(vocabulary, '[["word", "word"], …]') if vocabulary.is_file() else []
    if not isinstance(words, list) or not all(isinstance(each, list) for each in words):
        raise DataError(f"{vocabulary} is damaged (it holds no lists of words): fetch it again")
    named = [" ".join(map(str, each)) for each in words]
    classes = named if len(named) >= count else [f"class {label}" for label in range(count)]
    return tuple(classes), folder / "Diving48_V2_train.json", rows
