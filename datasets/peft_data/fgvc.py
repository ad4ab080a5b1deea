"""The five fine-grained sets, with the json lists of VPT, or as their authors publish them.

    <root>/{train,val,test}.json = {"relative/picture.jpg": class id}; ids in order become classes 0, 1, …
    pictures: CUB-200-2011 and NABirds in images/, Stanford Dogs in Images/, Stanford Cars and Oxford Flowers in <root>

Jia et al., Visual Prompt Tuning, 2022; github.com/KMnP/vpt, src/data/datasets/json_dataset.py.
"""

from __future__ import annotations

from pathlib import Path

from peft_data.base import ClassificationData, Pictures, no_pictures
from peft_data.errors import DataError
from peft_data.fgvc_published import MARKS, Splits, published
from peft_data.lists import known_names, listed, names_from_paths, readable
from peft_data.splits import tenth_as_val
from peft_data.texts import read_json, read_lines

# Set: folders it is found in, classes, pictures in train, val, test.
SETS = {
    "cub": (("CUB_200_2011", "CUB", "cub"), 200, (5394, 600, 5794)),
    "nabirds": (("nabirds", "NABirds"), 555, (21536, 2393, 24633)),
    "flowers": (("OxfordFlowers", "OxfordFlower", "flowers"), 102, (1020, 1020, 6149)),
    "dogs": (("StanfordDogs", "Stanford-dogs", "dogs"), 120, (10800, 1200, 8580)),
    "cars": (("StanfordCars", "Stanford-cars", "cars"), 196, (7329, 815, 8041)),
}
NAMES = {
    f"fgvc/{name}": f"FGVC, {folders[0]}: {classes} classes, {sizes[0] + sizes[1]:,} to train, {sizes[2]:,} to test; "
    "needs its folder"
    for name, (folders, classes, sizes) in SETS.items()
}


def claims(path: Path) -> bool:
    """Whether it is a set's folder."""
    return any((path / name).is_file() for name in ("train.json", *MARKS))


def load(name: str, root: str | None, seed: int) -> ClassificationData:
    """One set. `root` is the folder that holds the sets, or the set's own; for a set opened by its path, that path.

    Without train.json the splits are those that the set's authors publish. A missing val is a tenth of train, drawn
    by the seed.

    Raises:
        DataError: the folder, train.json, test.json or a picture is missing, or a list is not of the form above.
    """
    key = name.removeprefix("fgvc/")
    folder = _find(key, root) if name.startswith("fgvc/") else Path(root or name).resolve()
    if not name.startswith("fgvc/"):
        key = next((key for key, (folders, *_) in SETS.items() if folder.name in folders), "")
    _, classes, sizes = SETS.get(key, ((), None, None))
    lists = _lists(folder)
    ids = sorted(set(lists["train"].values()), key=lambda word: (isinstance(word, str), word))
    number = {word: label for label, word in enumerate(ids)}
    parts = {split: _pictures(folder, split, entries, number) for split, entries in lists.items()}
    notes = [
        f"{name}: {len(parts[split])} pictures in {split}, published are {size}"
        for split, size in zip(parts, sizes or (), strict=False)
        if len(parts[split]) not in (0, size)
    ]
    if classes and len(ids) != classes:
        notes.append(f"{name}: {len(ids)} classes, published are {classes}")
    train, val, test = parts.values()
    names = _names(folder, key, ids, train)
    if not len(val):
        train, val = tenth_as_val(train, seed)
        notes.append(f"{name} has no val: it is a tenth of train, drawn by the seed {seed}")
    label = f"fgvc/{key}" if key else name
    return ClassificationData(label, names, train, val, test, recipe="fgvc", notes=tuple(notes))


def _find(key: str, root: str | None) -> Path:
    folders = SETS[key][0]
    how = (
        f"the folder {folders[0]} with the set as its authors publish it, or its pictures and train.json, val.json, "
        'test.json ({"picture": class id, …}, as in github.com/KMnP/vpt), and give the place of that folder as root (--data.root)'
    )
    if root is None:
        raise DataError(f"fgvc/{key} needs root: make {how}")
    for folder in (*(Path(root) / name for name in folders), Path(root)):
        if claims(folder):
            return folder.resolve()
    raise DataError(f"fgvc/{key} is not in {root}: make {how}")


def _lists(folder: Path) -> Splits:
    lists = {split: _read(folder / f"{split}.json") for split in ("train", "val", "test")}
    if not any(lists.values()):
        lists = published(folder) or lists
    if not lists["train"] or not lists["test"]:
        missing = "train.json" if not lists["train"] else "test.json"
        raise DataError(f'{folder / missing} is missing or lists no picture: it must be {{"picture": class id, …}}')
    return lists


def _read(path: Path) -> dict[str, int | str]:
    if not path.is_file():
        return {}
    entries = read_json(path, '{"picture": class id, …}')
    if not isinstance(entries, dict):
        raise DataError(f'{path} is a list: it must be {{"picture": class id, …}}')
    for picture, word in entries.items():
        if not isinstance(word, (int, str)) or word == "":
            raise DataError(f"{path} gives {picture!r} the class {word!r}: it must be a number or a word")
    return entries


def _pictures(folder: Path, split: str, entries: dict[str, int | str], number: dict[int | str, int]) -> Pictures:
    if not entries:
        return no_pictures(split)
    source = folder / f"{split}.json" if (folder / f"{split}.json").is_file() else folder
    for picture, word in entries.items():
        if word not in number:
            raise DataError(f"{source} gives {picture!r} the class {word!r}, which train.json has not: mend either")
    folders = [folder / "images", folder / "Images", folder]
    return listed(list(entries), [number[word] for word in entries.values()], folders, folder, source)


def _names(folder: Path, key: str, ids: list[int | str], train: Pictures) -> tuple[str, ...]:
    if key == "flowers" and len(ids) == 102:
        return known_names()["oxford_flowers102"]
    table = folder / "classes.txt"  # CUB and NABirds: `id name` in each line
    if table.is_file():
        pairs = (line.split(maxsplit=1) for _, line in read_lines(table, "a list of classes"))
        named = {pair[0]: readable(pair[1]) for pair in pairs if len(pair) == 2}
        if all(str(word) in named for word in ids):
            return tuple(named[str(word)] for word in ids)
    if all(isinstance(word, str) and not word.isdecimal() for word in ids):
        return tuple(map(str, ids))
    return names_from_paths((train,), len(ids))
