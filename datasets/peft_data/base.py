"""What every data set is once it is opened: `ClassificationData`, three splits of `Pictures` and their class names."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, TypeAlias

import torch

from peft_data.errors import DataError

Items: TypeAlias = Sequence[Any] | torch.Tensor


@dataclass(frozen=True, eq=False)
class Pictures:
    """One split: N pictures and their classes.

    Args:
        items: file paths; or the pictures already decoded, uint8 `N 3 H W`; or a sequence that gives a
            `PIL.Image.Image` when indexed (nothing is decoded before).
        labels: one a picture, the first dimension N: int64 `N`, classes counted from 0, or what another task has
            (`peft_data.targets`).
        root: the folder that names of files are relative to.
        split: the word that names of pictures without a file begin with.
        names: names that are set rather than derived, N of them, or none.

    Raises:
        DataError: items and labels differ in number, or a tensor is not uint8 `N 3 H W`.
    """

    items: Items
    labels: torch.Tensor
    root: Path | None = None
    split: str = ""
    names: tuple[str, ...] = ()
    kind: ClassVar[str] = "pictures"
    """What the items are called."""

    def __post_init__(self) -> None:
        if len(self.items) != len(self.labels) or (self.names and len(self.names) != len(self.labels)):
            raise DataError(f"a split needs one label a picture, not {len(self.labels)} for {len(self.items)} pictures")
        if isinstance(self.items, torch.Tensor):
            shape = tuple(self.items.shape)
            if self.items.dtype != torch.uint8 or self.items.ndim != 4 or shape[1] != 3:
                raise DataError(f"decoded pictures must be uint8 N 3 H W, not {self.items.dtype} {shape}")

    def __len__(self) -> int:
        return len(self.labels)

    def name(self, i: int) -> str:
        """The picture's path relative to `root` with `/` between folders, or `split/000012`."""
        if self.names:
            return self.names[i]
        item = self.items[i] if self.is_files else None
        if isinstance(item, Path):
            root = self.root
            return (item.relative_to(root) if root is not None and item.is_relative_to(root) else item).as_posix()
        return f"{self.split}/{i:06d}" if self.split else f"{i:06d}"

    @property
    def is_files(self) -> bool:
        """Whether the items are file paths."""
        return isinstance(self.items, (list, tuple)) and (not self.items or isinstance(self.items[0], Path))

    @property
    def files(self) -> tuple[Path, ...]:
        """The items where they are file paths, else none."""
        return tuple(item for item in self.items if isinstance(item, Path)) if self.is_files else ()

    def item(self, i: int) -> Any:
        """A path, a picture of Pillow's, or one that is decoded, as `items` has it."""
        return self.items[i]

    def subset(self, indices: Sequence[int] | torch.Tensor) -> Pictures:
        """The pictures at `indices`, in that order, under the names they have here."""
        index = torch.as_tensor(indices, dtype=torch.int64)
        rows = index.tolist()
        names = () if self.is_files and not self.names else tuple(self.name(i) for i in rows)
        if isinstance(self.items, torch.Tensor):
            items: Items = self.items[index]
        elif self.is_files:
            items = [self.items[i] for i in rows]
        else:
            items = Chosen(self.items, rows)
        return replace(self, items=items, labels=self.labels[index], names=names)

    def __add__(self, other: Pictures) -> Pictures:
        """Both splits after each other, under the names they have: what a final run trains on is train + val."""
        if not len(other) or not len(self):
            return self if len(self) else other
        labels = torch.cat([self.labels, other.labels])
        names = tuple(part.name(i) for part in (self, other) for i in range(len(part)))
        if isinstance(self.items, torch.Tensor) and isinstance(other.items, torch.Tensor):
            same_size = self.items.shape[1:] == other.items.shape[1:]
            if not same_size:
                raise DataError("splits of decoded pictures can be joined only if their pictures have one size")
            items: Items = torch.cat([self.items, other.items])
        elif self.is_files and other.is_files:
            items = [*self.items, *other.items]
        else:
            items = Joined(self.items, other.items)
        return replace(self, items=items, labels=labels, names=names)


class Chosen(Sequence):
    """`items[rows[i]]`, read when asked for; `fingerprint` says what is in it, where `items` has one."""

    def __init__(self, items: Sequence, rows: Sequence[int]) -> None:
        self.items, self.rows = items, list(rows)
        inner = getattr(items, "fingerprint", None)
        self.fingerprint = inner and f"{inner}[{','.join(map(str, self.rows))}]"

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, i: int) -> object:
        return self.items[self.rows[i]]

    def __iter__(self) -> Iterator[object]:
        return (self.items[row] for row in self.rows)


class Joined(Sequence):
    """Two sequences after each other, read when asked for."""

    def __init__(self, first: Items, second: Items) -> None:
        self.first, self.second = first, second
        inner = [getattr(part, "fingerprint", None) for part in (first, second)]
        self.fingerprint = all(inner) and "+".join(map(str, inner)) or None

    def __len__(self) -> int:
        return len(self.first) + len(self.second)

    def __getitem__(self, i: int) -> object:
        return self.first[i] if i < len(self.first) else self.second[i - len(self.first)]


def no_pictures(split: str = "") -> Pictures:
    """An empty split."""
    return Pictures([], torch.zeros(0, dtype=torch.int64), split=split)


@dataclass(frozen=True, eq=False)
class ClassificationData:
    """A classification data set: what `open_data` gives. Those of other tasks say in `check`, `counts` and `said` what their
    labels are.

    Args:
        name: `vtab/cifar100`, `world/count`, `digits`, or a folder's name.
        class_names: C names; label c means `class_names[c]`.
        train, val, test: the splits; val and test may be empty. A final honest run trains on `train + val`.
        recipe: the training recipe that suits it: `vtab`, `fgvc`, `digits`, `world`, or none.
        notes: what to warn the user about once, e.g. sizes that differ from the published ones.
        left_out: files in the data's folder that are no pictures (or clips) and do not count.

    Raises:
        DataError: fewer than two classes, no training picture, or a label that is not a class.
    """

    name: str
    class_names: tuple[str, ...]
    train: Pictures
    val: Pictures
    test: Pictures
    recipe: str | None = None
    notes: tuple[str, ...] = ()
    left_out: int = 0
    task: ClassVar[str] = "classify"
    """What a model is trained for on it."""

    @property
    def kinds(self) -> str:
        """What the pictures are of, in words: `10 classes`."""
        return f"{len(self.class_names):,} classes"

    def counts(self, part: Pictures) -> torch.Tensor:
        """How many pictures of a split each class has, int64 `C`."""
        return part.labels.bincount(minlength=len(self.class_names))

    def answers(self, part: Pictures) -> bytes:
        """What a split's labels say: with its pictures, all that a run is made from."""
        return part.labels.numpy().tobytes()

    def said(self, label: int) -> str:
        """A label, as `labels.tolist()` has it, in words."""
        return self.class_names[label]

    @property
    def summary(self) -> str:
        """What was found, in a line: `240 pictures of 10 classes: 154 to train, 38 to choose on, 48 to test; 4 files left
        out`."""
        sizes = len(self.train), len(self.val), len(self.test)
        uses = [
            f"{size:,} {use}" for size, use in zip(sizes, ("to train", "to choose on", "to test"), strict=True) if size
        ]
        files = f"; {self.left_out:,} file{'' if self.left_out == 1 else 's'} left out" if self.left_out else ""
        kind = self.train.kind if len(self.train) else self.test.kind
        return f"{sum(sizes):,} {kind} of {self.kinds}: {', '.join(uses)}{files}"

    def __post_init__(self) -> None:
        self.check()
        if not len(self.train):
            raise DataError(f"{self.name} has no training pictures: give it at least one a class")

    def check(self) -> None:
        """Raises DataError: class names or labels that cannot be."""
        classes = len(self.class_names)
        if classes < 2:
            found = "one class" if classes else "no class"
            raise DataError(f"{self.name} has {found}: a classifier needs two or more")
        for split, pictures in (("train", self.train), ("val", self.val), ("test", self.test)):
            wrong = pictures.labels[(pictures.labels < 0) | (pictures.labels >= classes)]
            if len(wrong):
                label = int(wrong[0])
                raise DataError(f"{self.name} has the label {label} in {split}: labels must be 0 to {classes - 1}")
