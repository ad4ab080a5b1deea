"""Splits that a seed draws, and the words that name splits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from peft_data.base import Pictures, no_pictures
from peft_data.errors import DataError

WORDS = {
    "train": ("train", "training", "trainset", "trainingset", "traindata", "trainingdata"),
    "val": ("val", "valid", "validation", "dev", "valset", "validset", "validationset", "valdata", "validationdata"),
    "test": ("test", "testing", "testset", "testingset", "testdata", "testingdata"),
}
"""Split → how folders, tables and lists call it, in small letters and without blanks, `_` and `-`."""
_SPLIT_OF = {word: split for split, words in WORDS.items() for word in words}


def split_of(word: str) -> str | None:
    """The split that a word names, whatever its letters' case: `Training_Set` → `train`; None for any other word."""
    return _SPLIT_OF.get("".join(letter for letter in word.casefold() if letter not in " _-"))


def stratified(labels: torch.Tensor, sizes: Sequence[int], seed: int) -> list[torch.Tensor]:
    """Indices of len(sizes) parts with exactly these sizes, each class spread evenly over the parts.

    The r-th picture of a class with n, in an order drawn from the seed, gets the place r / n; the places in ascending
    order are cut into the parts. So every class has a picture in the first part, if that has room for one each.

    Args:
        labels: int64 `N`.
        sizes: the parts' sizes, `N` in all.
    """
    generator = torch.Generator().manual_seed(seed)
    place = torch.rand(len(labels), generator=generator, dtype=torch.float64) * 1e-6
    for label in labels.unique().tolist():
        rows = (labels == label).nonzero()[:, 0]
        order = torch.randperm(len(rows), generator=generator)
        place[rows[order]] += torch.arange(len(rows), dtype=torch.float64) / len(rows)
    return [part.sort().values for part in place.argsort(stable=True).split(list(sizes))]


def drawn(labels: torch.Tensor, shares: Sequence[float], seed: int, at_least: float = 1.0) -> list[torch.Tensor]:
    """Indices of what stays and of len(shares) parts drawn class by class, the first of them what stays.

    A class of n pictures gives n · share of them to each part, rounded so that the parts have their shares of all pictures
    (of classes with two or more), no two classes of equal n differ by more than one in a part, and none gives its last
    picture away.

    Args:
        labels: int64 `N`.
        shares: parts of one.
        at_least: a class that would give this much of a picture, or more, to a part gives one.
    """
    generator = torch.Generator().manual_seed(seed)
    classes, number = labels.unique(return_inverse=True)
    counts = number.bincount(minlength=len(classes))
    ahead = torch.rand(len(classes), generator=generator, dtype=torch.float64) * 1e-6
    taken: list[torch.Tensor] = []
    several = int(counts[counts > 1].sum())
    for part in shares:
        size, share = round(part * several), counts.double() * part
        given = share.floor().long()
        given[(given == 0) & (share >= at_least)] = 1
        room = sum((-given for given in taken), counts - 1)
        given = given.minimum(room)
        order = (share - given - ahead).argsort(descending=True)
        open_for_more = order[(given < room)[order]]
        given[open_for_more[: max(0, size - int(given.sum()))]] += 1
        ahead = ahead + given - share  # who gave more than its share to one part comes last for the next
        taken.append(given)
    parts: list[list[torch.Tensor]] = [[] for _ in range(len(shares) + 1)]
    for label in range(len(classes)):
        rows = (number == label).nonzero()[:, 0]
        rows = rows[torch.randperm(len(rows), generator=generator)]
        lengths = [int(part[label]) for part in taken]
        for part, piece in zip(parts, rows.split([len(rows) - sum(lengths), *lengths]), strict=True):
            part.append(piece)
    return [torch.cat(part).sort().values for part in parts]


def strata(labels: torch.Tensor) -> torch.Tensor:
    """What a split that a seed draws is even in, int64 `N`: the classes; of sets of labels `N C` the rarest of each picture's
    (C where it has none); of numbers nothing."""
    if labels.ndim == 2:
        rarity = torch.where(labels > 0, (labels > 0).sum(0), len(labels) + 1)
        return torch.where((labels > 0).any(1), rarity.argmin(1), labels.shape[1])
    return torch.zeros(len(labels), dtype=torch.int64) if labels.is_floating_point() else labels


def check_seed(seed: int) -> None:
    """Raises DataError where it is no whole number from 0 to 2⁶³ − 1."""
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 1 << 63:
        raise DataError(f"the seed of the data must be a whole number from 0 to 2^63 - 1, not {seed!r}")


def check_shares(val: float, test: float) -> None:
    """Raises DataError where the parts `val` and `test` are none, or leave nothing to train on."""
    if not (0 <= val < 1 and 0 <= test < 1 and val + test < 1):
        raise DataError(f"val={val} and test={test} must be parts of one, and leave something to train on")


def three_parts(
    pictures: Pictures, val: float, test: float, seed: int, by_class: bool = True
) -> tuple[Pictures, Pictures, Pictures]:
    """Train, val and test drawn from one set, class by class; `val` and `test` are parts of it.

    Args:
        by_class: False where labels are no classes: then all pictures are drawn alike.

    Raises:
        DataError: the parts leave nothing to train on.
    """
    check_shares(val, test)
    parts = drawn(_even_in(pictures, by_class), (val, test), seed, at_least=0.5)
    train, val_part, test_part = (pictures.subset(part) for part in parts)
    return train, val_part, test_part


def tenth_as_val(train: Pictures, seed: int, by_class: bool = True) -> tuple[Pictures, Pictures]:
    """Train and val where a set has no val: a tenth of train, drawn by the seed class by class (`three_parts`)."""
    if len(train) < 10:
        return train, no_pictures("val")
    rest, part = drawn(_even_in(train, by_class), (0.1,), seed)
    return train.subset(rest), train.subset(part)


def _even_in(pictures: Pictures, by_class: bool) -> torch.Tensor:
    return strata(pictures.labels) if by_class else torch.zeros(len(pictures), dtype=torch.int64)


def completed(
    given: Mapping[str, Pictures], val: float, test: float, seed: int, by_class: bool = True
) -> tuple[tuple[Pictures, Pictures, Pictures], tuple[str, ...], list[str]]:
    """Train, val and test of what files give, train at least; the splits that the seed drew; and what to tell.

    Train alone is split by the seed; of train and val alone val is the test set and val a tenth of train; of train and test val
    is that tenth, too.
    """
    if len(given) == 1:
        return three_parts(given["train"], val, test, seed, by_class), ("val", "test"), []
    train, own, tested, notes = given["train"], given.get("val"), given.get("test"), []
    if tested is None:
        own, tested = None, given["val"]
        notes.append("there is no test split: val is the test set, and val a tenth of train")
    if own is not None:
        return (train, own, tested), (), notes
    return (*tenth_as_val(train, seed, by_class), tested), ("val",), notes
