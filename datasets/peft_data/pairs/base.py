"""What every set of pairs is once it is opened: `PairData`, three splits of `Pairs`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from peft_data.base import Pictures, no_pictures
from peft_data.errors import DataError
from peft_data.splits import check_shares

Captions = tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Pairs:
    """One split: N pictures, each with one caption or several.

    Args:
        pictures: their labels are their places in `captions`, which stay theirs when unreadable pictures are left out.
        captions: N, none of them empty.
    """

    pictures: Pictures
    captions: tuple[Captions, ...]

    def __len__(self) -> int:
        return len(self.captions)

    def subset(self, rows: Sequence[int]) -> Pairs:
        """The pairs at `rows`, in that order."""
        chosen = self.pictures.subset(rows)
        return Pairs(_numbered(chosen), tuple(self.captions[row] for row in rows))


def pairs_of(pictures: Pictures, captions: Sequence[Captions]) -> Pairs:
    """A split of pictures and of their captions, by place."""
    return Pairs(_numbered(pictures), tuple(captions))


def no_pairs(split: str = "") -> Pairs:
    return Pairs(no_pictures(split), ())


def _numbered(pictures: Pictures) -> Pictures:
    return replace(pictures, labels=torch.arange(len(pictures)))


@dataclass(frozen=True, eq=False)
class PairData:
    """A set of pairs: what `open_pairs` gives.

    Args:
        name: `world/pairs`, or the file's or folder's name.
        train, val, test: the splits; val and test may be empty.
        notes: what to warn the user about once.

    Raises:
        DataError: fewer than two training pairs, or one caption for all of them.
    """

    name: str
    train: Pairs
    val: Pairs
    test: Pairs
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if len(self.train) < 2:
            found = "one pair" if len(self.train) else "no pair"
            raise DataError(f"{self.name} has {found} to train on: pictures are learnt from the difference of captions")
        if len({caption for captions in self.train.captions for caption in captions}) < 2:
            caption = self.train.captions[0][0]
            raise DataError(
                f'all training pictures of {self.name} have the one caption "{caption}": nothing can be learnt from it, so '
                "give pictures captions of their own"
            )

    @property
    def summary(self) -> str:
        """`1,250 pairs, 5 captions a picture: 1,000 to train, 125 to choose on, 125 to test`."""
        parts = [
            (len(part), use)
            for part, use in ((self.train, "to train"), (self.val, "to choose on"), (self.test, "to test"))
        ]
        uses = ", ".join(f"{size:,} {use}" for size, use in parts if size)
        each = sum(map(len, self.train.captions)) / len(self.train)
        several = f", {each:.2g} captions a picture" if each > 1 else ""
        return f"{sum(size for size, _ in parts):,} pictures with captions{several}: {uses}"


def three_parts(whole: Pairs, val: float, test: float, seed: int) -> tuple[Pairs, Pairs, Pairs]:
    """Train, val and test drawn from one set by the seed, picture by picture."""
    check_shares(val, test)
    order = torch.randperm(len(whole), generator=torch.Generator().manual_seed(seed)).tolist()
    first, second = round(len(whole) * val), round(len(whole) * test)
    parts = order[first + second :], order[:first], order[first : first + second]
    train, val_part, test_part = (whole.subset(sorted(part)) for part in parts)
    return train, val_part, test_part


def said_once(rows: Sequence[tuple[str, str]]) -> tuple[list[str], list[Captions]]:
    """(picture, caption) rows → the different pictures in order, and the different captions of each."""
    found: dict[str, dict[str, None]] = {}
    for picture, caption in rows:
        found.setdefault(picture, {})[caption] = None
    return list(found), [tuple(captions) for captions in found.values()]
