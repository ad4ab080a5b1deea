"""Pictures and maps of the same names in folders side by side, the splits inside or around them: masks, depths.

data/images/train/1.jpg  data/masks/train/1.png     or     data/train/images/1.jpg  data/train/masks/1.png     or no splits
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

from peft_data.base import Pictures
from peft_data.errors import DataError, listing
from peft_data.pictures import UNREADABLE, is_picture, own_size
from peft_data.splits import check_shares, completed, split_of
from peft_data.walk import files_in, folders_in

Pair = tuple[Path, Path]
PICTURES = ("images", "image", "imgs", "img", "rgb", "pictures")
"""Folders of pictures, in small letters."""


def pairs_in(
    pictures: Path, maps: Path, also: Sequence[str], what: str = "mask", wanted: Callable[[Path], bool] = is_picture
) -> list[Pair]:
    """Pictures of a folder, each with the map of its name, or of its name and one of the words `also`.

    Args:
        what: a map is called, for messages.
        wanted: which files are maps.

    Raises:
        DataError: a picture without a map, or none at all.
    """
    files = files_in(pictures, is_picture)
    by_name = {file.relative_to(maps).with_suffix("").as_posix(): file for file in files_in(maps, wanted)}
    found, missing = [], []
    for file in files:
        name = file.relative_to(pictures).with_suffix("").as_posix()
        own = next((by_name[name + word] for word in ("", *also) if name + word in by_name), None)
        missing += [str(file)] if own is None else []
        found += [(file, own)] if own is not None else []
    if missing:
        raise DataError(
            f"{len(missing)} pictures have no {what} of their name in {maps}: add or remove them{listing(missing)}"
        )
    if not found:
        raise DataError(f"{pictures} has no pictures: put them there, and their {what}s into {maps}")
    return found


def places_in(folder: Path, words: Sequence[str]) -> dict[str, Pair]:
    """Split → folders of pictures and of maps, which are called as one of `words`; `train` alone where there are no splits."""
    if two := _two(folder, words):
        inside = {split: each for each in folders_in(two[0]) if (split := split_of(each.name))}
        if "train" not in inside:
            return {"train": two}
        return {split: (each, two[1] / each.name) for split, each in inside.items()}
    around = {
        split: two for each in folders_in(folder) if (split := split_of(each.name)) and (two := _two(each, words))
    }
    return around if "train" in around else {}


def _two(folder: Path, words: Sequence[str]) -> Pair | None:
    names = {each.name.lower(): each for each in folders_in(folder)}
    pictures, maps = (next((names[word] for word in each if word in names), None) for each in (PICTURES, words))
    return (pictures, maps) if pictures and maps else None


def given_pairs(
    places: Mapping[str, Pair], also: Sequence[str], what: str = "mask", wanted: Callable[[Path], bool] = is_picture
) -> dict[str, list[Pair]]:
    """Split → its pairs (`pairs_in`), of the splits in their order.

    Raises:
        DataError: a split without a folder of maps, or as `pairs_in`.
    """
    parts = {}
    for split in ("train", "val", "test"):
        if place := places.get(split):
            if not place[1].is_dir():
                raise DataError(f"{place[0]} has no folder of {what}s beside it: put them into {place[1]}")
            parts[split] = pairs_in(*place, also, what, wanted)
    return parts


def split_pairs(
    parts: Mapping[str, Sequence[Pair]], root: Path, val: float, test: float, seed: int
) -> tuple[tuple[Pictures, Pictures, Pictures], tuple[str, ...], list[str]]:
    """Train, val and test, whose labels are rows of all pairs one after another; the splits that the seed drew; what to tell."""
    check_shares(val, test)
    start, given = 0, {}
    for split, pairs in parts.items():
        rows = torch.arange(start, start + len(pairs))
        given[split] = Pictures([picture for picture, _ in pairs], rows, root=root, split=split)
        start += len(pairs)
    return completed(given, val, test, seed, by_class=False)


def refuse_other_sizes(
    pairs: Sequence[Pair], what: str = "mask", size_of: Callable[[Path], tuple[int, int]] = own_size,
    fits: Callable[[tuple[int, int], tuple[int, int]], bool] = tuple.__eq__,
) -> None:  # fmt: skip
    """Raises DataError: lists maps whose size does not fit their picture's.

    Args:
        size_of: height and width of a map.
        fits: told both sizes, the picture's first.
    """

    def odd(pair: Pair) -> str | None:
        try:
            own, other = own_size(pair[0]), size_of(pair[1])
        except UNREADABLE:
            return None  # told where it is decoded
        if fits(own, other):
            return None
        return f"{pair[1]} is {other[1]} × {other[0]}, {pair[0].name} {own[1]} × {own[0]}"

    with ThreadPoolExecutor(8) as threads:
        wrong = [each for each in threads.map(odd, pairs) if each]
    if wrong:
        raise DataError(f"{len(wrong)} {what}s have another size than their pictures: make them anew{listing(wrong)}")
