"""Something-Something v2 as it is published: JSON lists of templates, a video or a folder of frames an id.

something-something-v2-train.json (or train.json) …-validation.json …-labels.json, 20bn-something-something-v2/1.webm …
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from peft_data.base import ClassificationData
from peft_data.errors import DataError, nearest
from peft_data.splits import tenth_as_val
from peft_data.texts import read_json
from peft_data.video.options import first_of, listed_clips, with_sampling

NAMES = {"ssv2": "Something-Something v2, 174 classes: set data.root to the folder with its JSON lists"}
_FOLDERS = ("20bn-something-something-v2", "videos", "frames", ".")


def _list(root: Path, word: str) -> Path | None:
    return first_of(root, (f"something-something-v2-{word}.json", f"{word}.json", f"labels/{word}.json",
                           f"annotations/{word}.json"))  # fmt: skip


@with_sampling()
def load(name: str, root: str | None, seed: int) -> tuple[ClassificationData, bool]:
    """The set in `root`. The published test set has no labels: validation is the test set, and a tenth of train is val.
    Direction is the label of many classes, so clips are never mirrored.

    Raises:
        DataError: a list that is missing or damaged, an unknown template, clips that are not there.
    """
    folder = Path(root or name).expanduser().resolve()
    labels = _read(folder, "labels", dict)
    try:
        number = {template: int(label) for template, label in labels.items()}
    except (ValueError, TypeError) as error:
        raise DataError(f"{_list(folder, 'labels')} is damaged ({error}): fetch it again") from error
    classes = tuple(sorted(number, key=number.__getitem__))
    parts = {}
    for split, word in (("train", "train"), ("test", "validation")):
        rows = []
        source = _list(folder, word)
        for entry in _read(folder, word, list):
            if not isinstance(entry, dict) or "id" not in entry:
                raise DataError(f"{source} is damaged ({entry!r:.60} has no id): fetch it again")
            template = str(entry.get("template") or entry.get("label")).replace("[", "").replace("]", "")
            if template not in number:
                raise DataError(f"{source} has the template {template!r}{nearest(template, number)}, which is no label")
            rows.append((str(entry["id"]), number[template]))
        assert source is not None
        parts[split] = listed_clips(rows, [folder / inner for inner in _FOLDERS], folder, split, source)
    train, val = tenth_as_val(parts["train"], seed)
    note = "ssv2's test set has no labels: the test set is its validation set, and val a tenth of train"
    return ClassificationData("ssv2", classes, train, val, parts["test"], notes=(note,)), True


def _read(root: Path, word: str, kind: type) -> Any:
    path = _list(root, word)
    if path is None:
        raise DataError(f"{root} has no something-something-v2-{word}.json: put the published lists there")
    content = read_json(path)
    if not isinstance(content, kind):
        raise DataError(f"{path} is damaged (it holds no {kind.__name__}): fetch it again")
    return content
