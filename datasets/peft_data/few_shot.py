"""Few-shot lists as NOAH publishes them: five fine-grained sets, 1, 2, 4, 8 or 16 pictures a class, three draws.

    few-shot/<set>/annotations/train_meta.list.num_shot_16.seed_0  val_meta.list  test_meta.list    lines: picture label
    few-shot/<set>/images/…                                   (Stanford Cars: the pictures lie beside annotations/)

Zhang, Zhou, Liu, Neural Prompt Search, 2022; github.com/ZhangYuanhan-AI/NOAH, data/few-shot.
"""

from __future__ import annotations

import re
from pathlib import Path

from peft_data.base import ClassificationData, Pictures, no_pictures
from peft_data.errors import DataError, nearest
from peft_data.lists import known_names, listed, names_from_paths, read_list

# Set: classes, and the set of `known_names` that has them.
SETS = {
    "fgvc-aircraft": (100, ""),
    "food101": (101, ""),
    "oxford-flowers102": (102, "oxford_flowers102"),
    "oxford-pets": (37, "oxford_iiit_pet"),
    "stanford-cars": (196, ""),
}
NAMES = {
    f"few_shot/{name}": f"NOAH's few-shot lists: {classes} classes, shots=1, 2, 4, 8 or 16; needs its folder"
    for name, (classes, _) in SETS.items()
}
_TRAIN = "train_meta.list.num_shot_"


def claims(path: Path) -> bool:
    """Whether it is a set's folder."""
    return any((path / "annotations").glob(f"{_TRAIN}*"))


def load(name: str, root: str | None, seed: int, *, shots: int = 16, list_seed: int = 0) -> ClassificationData:
    """One set. `root` is the folder that holds the sets; for a set opened by its path, that path. No seed is used.

    Args:
        shots: pictures a class to train on.
        list_seed: which of the published draws.

    Raises:
        DataError: the folder, the list or a picture is missing, or a list has a wrong line.
    """
    by_path = root is not None and not name.startswith("few_shot/")
    folder = Path(root).resolve() if by_path and root else _find(name.removeprefix("few_shot/"), root)
    given = next((key for key in SETS if _bare(key) == _bare(folder.name)), "")
    classes, known = SETS.get(given, (None, ""))
    lists = folder / "annotations"
    path = lists / f"{_TRAIN}{shots}.seed_{list_seed}"
    if not path.is_file():
        names = (file.name.removeprefix(_TRAIN) for file in lists.glob(f"{_TRAIN}*"))
        has = sorted(name.replace(".seed_", " with list_seed=") for name in names)
        raise DataError(f"{path} is missing: {folder.name} has shots={', '.join(has) or 'none'}")
    train, val, test = (
        _read(file, folder, classes) for file in (path, lists / "val_meta.list", lists / "test_meta.list")
    )
    count = classes or max(int(part.labels.max()) for part in (train, val, test) if len(part)) + 1
    names = known_names().get(known) or names_from_paths((train,), count)
    notes = []
    if repeated := len(train) - len(set(train.items)):
        notes.append(f"{name}: {repeated} lines of {path.name} repeat a picture, as the published lists do")
    label = f"few_shot/{given or folder.name}"
    return ClassificationData(label, names, train, val, test, recipe="fgvc", notes=tuple(notes))


def _bare(name: str) -> str:
    return re.sub(r"[-_ ]", "", name.lower()).replace("standford", "stanford")


def _find(name: str, root: str | None) -> Path:
    how = (
        f"the folder {name} with annotations/ and images/: take annotations/ from data/few-shot of "
        "github.com/ZhangYuanhan-AI/NOAH, put the set's own pictures beside it and give the "
        "place of few-shot/ as root (--data.root)"
    )
    if root is None:
        raise DataError(f"few_shot/{name} needs {how}")
    folders = [path for path in sorted(Path(root).glob("*")) if path.is_dir()]
    for folder in folders:
        if _bare(folder.name) == _bare(name):
            return folder.resolve()
    raise DataError(f"few_shot/{name} is not in {root}{nearest(name, [path.name for path in folders])}: it needs {how}")


def _read(path: Path, folder: Path, classes: int | None) -> Pictures:
    if not path.is_file():
        return no_pictures(path.name.split("_")[0])
    names, labels = read_list(path, classes)
    return listed(names, labels, [folder / "images", folder], folder, path)
