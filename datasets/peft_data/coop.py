"""CoOp's eleven data sets in the folders its authors describe, with their split files.

    <root>/oxford_pets/split_zhou_OxfordPets.json = {"train": [["Abyssinian_122.jpg", 0, "abyssinian"], …], "val": …}
    <root>/oxford_pets/images/Abyssinian_122.jpg
    <root>/fgvc_aircraft/{variants.txt, images_variant_{train,val,test}.txt, images/}     lines `1025794 707-320`
    <root>/imagenet/{classnames.txt, images/{train,val}/n01440764/…}                      lines `n01440764 tench`

Zhou et al., Learning to Prompt for Vision-Language Models, 2022; github.com/KaiyangZhou/CoOp, DATASETS.md. ImageNet's
validation pictures are the test split and there is no val; pictures of a class are in the order of their names (there:
as the file system lists them, so that few-shot sets differ from machine to machine).
"""

from __future__ import annotations

from pathlib import Path

import torch

from peft_data.base import ClassificationData, Pictures, no_pictures
from peft_data.errors import DataError
from peft_data.lists import listed
from peft_data.pictures import is_picture
from peft_data.texts import read_json, read_lines
from peft_data.walk import files_in

# Set: its folder, the folder of its pictures, its split file, classes, pictures in train, val, test.
SETS = {
    "imagenet": ("imagenet", "images", "", 1000, (1281167, 0, 50000)),
    "caltech101": ("caltech-101", "101_ObjectCategories", "Caltech101", 100, (4128, 1649, 2465)),
    "oxford_pets": ("oxford_pets", "images", "OxfordPets", 37, (2944, 736, 3669)),
    "stanford_cars": ("stanford_cars", "", "StanfordCars", 196, (6509, 1635, 8041)),
    "oxford_flowers": ("oxford_flowers", "jpg", "OxfordFlowers", 102, (4093, 1633, 2463)),
    "food101": ("food-101", "images", "Food101", 101, (50500, 20200, 30300)),
    "fgvc_aircraft": ("fgvc_aircraft", "images", "", 100, (3334, 3333, 3333)),
    "sun397": ("sun397", "SUN397", "SUN397", 397, (15880, 3970, 19850)),
    "dtd": ("dtd", "images", "DescribableTextures", 47, (2820, 1128, 1692)),
    "eurosat": ("eurosat", "2750", "EuroSAT", 10, (13500, 5400, 8100)),
    "ucf101": ("ucf101", "UCF-101-midframes", "UCF101", 101, (7639, 1898, 3783)),
}
NAMES = {
    f"coop/{name}": f"CoOp's split: {classes} classes, {sizes[2]:,} to test; needs its folder {folder}/"
    for name, (folder, _, _, classes, sizes) in SETS.items()
}
SPLITS = ("train", "val", "test")
SOURCE = "as DATASETS.md of github.com/KaiyangZhou/CoOp describes it"


def claims(path: Path) -> bool:
    """Whether it is a folder with one of the split files."""
    return path.is_dir() and any(path.glob("split_zhou_*.json"))


def load(name: str, root: str | None, seed: int) -> ClassificationData:
    """One set. `root` is the folder that holds the sets, or the set's own; for one opened by its path, that path. The
    splits are the published ones, so no seed is used.

    Raises:
        DataError: the folder, its split file or pictures are missing (all are listed), or the file has another form.
    """
    if not name.startswith("coop/"):
        folder = Path(root or name).resolve()
        (path, *_) = sorted(folder.glob("split_zhou_*.json"))
        pictures = next(
            (inner for inner, file in ((s[1], s[2]) for s in SETS.values()) if path.stem.endswith(f"_{file}")), ""
        )
        names, (train, val, test) = read_split(path, [folder / pictures, folder])
        return ClassificationData(name, names, train, val, test)
    key = name.removeprefix("coop/")
    inside, pictures, split, classes, sizes = SETS[key]
    folder = find(name, inside, root)
    if split:
        path = folder / f"split_zhou_{split}.json"
        if not path.is_file():
            raise DataError(f"{name} needs {path}: make the folder {SOURCE}, split file included")
        names, parts = read_split(path, [folder / pictures, folder])
    else:
        names, parts = _aircraft(folder) if key == "fgvc_aircraft" else _imagenet(folder)
    notes = [
        f"{name}: {len(part)} pictures in {split}, published are {size}"
        for split, part, size in zip(SPLITS, parts, sizes, strict=True)
        if len(part) != size
    ]
    if len(names) != classes:
        notes.append(f"{name}: {len(names)} classes, published are {classes}")
    train, val, test = parts
    return ClassificationData(name, names, train, val, test, notes=tuple(notes))


def find(name: str, inside: str, root: str | None) -> Path:
    """The folder `inside` of root, or root itself where it is that folder.

    Raises:
        DataError: there is none.
    """
    if root is None:
        raise DataError(f"{name} needs root, the folder that holds {inside}/: make that {SOURCE}")
    given = Path(root).resolve()
    folder = given / inside
    if folder.is_dir():
        return folder
    if given.name == inside.rpartition("/")[2] and given.is_dir():
        return given
    raise DataError(f"{name} is not in {root}, which has no folder {inside}: make it {SOURCE}")


def read_split(path: Path, folders: list[Path]) -> tuple[tuple[str, ...], list[Pictures]]:
    """Class names and train, val, test of a split_zhou_*.json; pictures lie in the first of the folders that has them.

    Raises:
        DataError: the file has another form, or pictures are missing: all of them are listed.
    """
    form = 'it must be {"train": [["picture.jpg", 0, "class"], …], "val": …, "test": …}'
    try:
        content = read_json(path, form.removeprefix("it must be "))
        entries = {split: [(str(p), int(label), str(word)) for p, label, word in content[split]] for split in SPLITS}
    except DataError:
        raise
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} cannot be read ({type(error).__name__}: {error}): {form}") from error
    named: dict[int, str] = {}
    for triples in entries.values():
        for picture, label, word in triples:
            if named.setdefault(label, word) != word:
                raise DataError(f"{path} calls class {label} both {named[label]!r} and {word!r} ({picture}): mend one")
    if sorted(named) != list(range(len(named))):
        raise DataError(f"{path} has the labels {', '.join(map(str, sorted(named)[:8]))} …: they must be 0, 1, 2 …")
    every = [triple for triples in entries.values() for triple in triples]
    found = listed([p for p, _, _ in every], [label for _, label, _ in every], folders, folders[0], path)
    parts, start = [], 0
    for split, triples in entries.items():
        rows = range(start, start := start + len(triples))
        parts.append(found.subset(list(rows)) if rows else no_pictures(split))
    return tuple(named[label] for label in range(len(named))), parts


def _aircraft(folder: Path) -> tuple[tuple[str, ...], list[Pictures]]:
    names = tuple(_lines(folder / "variants.txt"))
    number = {name: label for label, name in enumerate(names)}
    parts = []
    for split in SPLITS:
        source = folder / f"images_variant_{split}.txt"
        pairs = [line.partition(" ")[::2] for line in _lines(source)]
        for picture, word in pairs:
            if word not in number:
                raise DataError(f"{source} gives {picture} the class {word!r}, which variants.txt has not: mend either")
        files = [f"{picture}.jpg" for picture, _ in pairs]
        parts.append(listed(files, [number[word] for _, word in pairs], [folder / "images"], folder / "images", source))
    return names, parts


def _lines(path: Path) -> list[str]:
    if not path.is_file():
        raise DataError(f"{path} is missing: make the folder {SOURCE}")
    return [line for _, line in read_lines(path, "a list")]


def class_table(*places: Path) -> dict[str, str]:
    """WordNet id → name from the first `classnames.txt` that is there.

    Raises:
        DataError: none is there, or an id has no name.
    """
    path = next((place / "classnames.txt" for place in places if (place / "classnames.txt").is_file()), None)
    file = path or places[0] / "classnames.txt"
    table = {word: name.strip() for word, _, name in (line.partition(" ") for line in _lines(file))}
    if nameless := [word for word, name in table.items() if not name]:
        raise DataError(f"{file} has no name for {nameless[0]}: each line must be `n01440764 tench`")
    return table


def class_folders(folder: Path, labels: dict[str, int]) -> Pictures:
    """The pictures of folders whose names have labels.

    Raises:
        DataError: a folder is missing: all that are.
    """
    missing = [inside for inside in labels if not (folder / inside).is_dir()]
    if missing:
        more = f" and {len(missing) - 8} more" if len(missing) > 8 else ""
        raise DataError(f"{folder} has no folder {', '.join(missing[:8])}{more}: make it {SOURCE}")
    items: list[Path] = []
    numbers: list[int] = []
    for inside, label in labels.items():
        own = files_in(folder / inside, is_picture)
        items += own
        numbers += [label] * len(own)
    return Pictures(items, torch.tensor(numbers, dtype=torch.int64), root=folder)


def _imagenet(folder: Path) -> tuple[tuple[str, ...], list[Pictures]]:
    table = class_table(folder)
    labels = {word: label for label, word in enumerate(sorted(table))}
    train, test = (class_folders(folder / "images" / split, labels) for split in ("train", "val"))
    return tuple(table[word] for word in labels), [train, no_pictures("val"), test]
