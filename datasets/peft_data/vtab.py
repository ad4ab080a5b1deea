"""VTAB-1k: 19 tasks with 800 + 200 pictures to train, in the folder layout that NOAH's scripts write.

    vtab-1k/<task>/train800.txt  val200.txt  train800val200.txt  test.txt      lines: images/test/000000.jpg 7
    vtab-1k/<task>/images/{train800,val200,train800val200,test}/000000.jpg

Zhai et al., A Large-scale Study of Representation Learning with the Visual Task Adaptation Benchmark, 2019; the folder:
github.com/ZhangYuanhan-AI/NOAH, data/vtab-source/get_vtab1k.py. Labels are those of TensorFlow Datasets.
"""

from __future__ import annotations

from pathlib import Path

from peft_data.base import ClassificationData, Pictures
from peft_data.errors import DataError
from peft_data.lists import known_names, listed, names_from_paths, read_list

# Task: group, classes, pictures to test.
TASKS = {
    "cifar100": ("natural", 100, 10000),
    "caltech101": ("natural", 102, 6084),
    "dtd": ("natural", 47, 1880),
    "oxford_flowers102": ("natural", 102, 6149),
    "oxford_iiit_pet": ("natural", 37, 3669),
    "svhn": ("natural", 10, 26032),
    "sun397": ("natural", 397, 21750),
    "patch_camelyon": ("specialised", 2, 32768),
    "eurosat": ("specialised", 10, 5400),
    "resisc45": ("specialised", 45, 6300),
    "diabetic_retinopathy": ("specialised", 5, 42670),
    "clevr_count": ("structured", 8, 15000),
    "clevr_dist": ("structured", 6, 15000),
    "dmlab": ("structured", 6, 22735),
    "kitti": ("structured", 4, 711),
    "dsprites_loc": ("structured", 16, 73728),
    "dsprites_ori": ("structured", 16, 73728),
    "smallnorb_azi": ("structured", 18, 12150),
    "smallnorb_ele": ("structured", 9, 12150),
}
NAMES = {
    f"vtab/{task}": f"VTAB-1k, {group}: {classes} classes, 800 + 200 to train, {test:,} to test; needs its folder"
    for task, (group, classes, test) in TASKS.items()
}
SPELLINGS = {"cifar": "cifar100", "oxford_pet": "oxford_iiit_pet"}
ALIASES = {f"vtab/{other}": f"vtab/{task}" for other, task in SPELLINGS.items()}


def claims(path: Path) -> bool:
    """Whether it is a task's folder."""
    return any((path / name).is_file() for name in ("train800.txt", "train800val200.txt"))


def load(name: str, root: str | None, seed: int) -> ClassificationData:
    """One task. `root` is the folder that holds the tasks; for a task opened by its path, that path. No seed is used.

    Raises:
        DataError: the folder or one of its lists or pictures is missing, or a list has a wrong line.
    """
    task = SPELLINGS.get(name.removeprefix("vtab/"), name.removeprefix("vtab/"))
    folder = Path(root).resolve() if root is not None and not name.startswith("vtab/") else _find(task, root)
    _, classes, n_test = TASKS.get(task, ("", None, None))
    whole = [folder / "train800.txt", folder / "val200.txt"]
    if all(path.is_file() for path in whole):
        train, val = (_read(path, folder, classes) for path in whole)
    else:
        both = _read(folder / "train800val200.txt", folder, classes)
        train, val = both.subset(range(min(800, len(both)))), both.subset(range(min(800, len(both)), len(both)))
    test = _read(folder / "test.txt", folder, classes)
    parts = (train, val, test)
    found = {int(label) for part in parts for label in part.labels.unique()}
    count = classes or max(found) + 1
    names = known_names().get(task) or names_from_paths((train,), count)
    notes = [
        f"{name}: {len(part)} pictures in {split}, published are {size}"
        for split, part, size in (("train800", train, 800), ("val200", val, 200), ("test", test, n_test))
        if size is not None and len(part) != size
    ]
    if classes is not None and len(found) != classes:
        notes.append(f"{name}: {len(found)} classes have pictures, published are {classes}")
    return ClassificationData(f"vtab/{task}", names, *parts, recipe="vtab", notes=tuple(notes))


def _find(task: str, root: str | None) -> Path:
    folders = [task, *(other for other, same in SPELLINGS.items() if same == task)]
    how = (
        f"the folder {' or '.join(folders)} with train800.txt, val200.txt, test.txt and images/: get vtab-1k/ as "
        "NOAH's data/vtab-source/get_vtab1k.py writes it (github.com/ZhangYuanhan-AI/NOAH) and give its "
        "place as root (--data.root)"
    )
    if root is None:
        raise DataError(f"vtab/{task} needs {how}")
    for folder in folders:
        if (Path(root) / folder).is_dir():
            return (Path(root) / folder).resolve()
    raise DataError(f"vtab/{task} is not in {root}: it needs {how}")


def _read(path: Path, folder: Path, classes: int | None) -> Pictures:
    if not path.is_file():
        raise DataError(f"{path} is missing: a VTAB-1k task has train800.txt, val200.txt, test.txt and images/")
    names, labels = read_list(path, classes)
    return listed(names, labels, [folder], folder, path)
