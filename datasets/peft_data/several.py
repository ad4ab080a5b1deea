"""Several data sets as the tasks of one run: `several/digits+world/count+~/photos`, each with classes of its own."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import torch
from PIL import Image

from peft_data.base import ClassificationData, Pictures
from peft_data.cache_file import fingerprint
from peft_data.chance import generator_of
from peft_data.errors import DataError
from peft_data.names import formats, named

NAMES = {"several/<a+b+c>": "the data sets a, b and c as tasks of one run, each with classes of its own"}


@dataclass(frozen=True, eq=False)
class SeveralData(ClassificationData):
    """Classes of all data sets one behind the other, `name: class`.

    Args:
        parts: name of each data set, and how many classes it has.
        temperature: T of the draws of a batch's data set, with a probability that goes as size^(1/T).
    """

    parts: tuple[tuple[str, int], ...] = ()
    temperature: float = 10.0
    task: ClassVar[str] = "several"

    @property
    def kinds(self) -> str:
        return f"{len(self.class_names):,} classes in {len(self.parts)} data sets"


def load(name: str, root: str | None, seed: int, *, temperature: float = 10.0) -> SeveralData:
    """All of them; a step's batch is drawn from one.

    Args:
        temperature: 1 draws data sets by their sizes; the larger, the more alike (10 as HyperFormer has it).

    Raises:
        DataError: one data set alone, one twice, or other than pictures with classes.
    """
    from peft_data import open_data

    names = name.partition("/")[2].split("+")
    if len(names) < 2 or len(set(names)) < len(names) or not all(names):
        raise DataError(f"{name} names data sets with + between them, two at least, each once")
    if not temperature >= 1:
        raise DataError(f"the option 'temperature' of {name} must be 1 or more, not {temperature:g}")
    inside = [_lies_in_a_folder(each) for each in names]
    if root is not None and not any(inside):
        raise DataError(f"no data set of {name} lies in a folder of data sets: leave the root {root} out")
    found = [
        open_data(each, root=root if within else None, seed=seed) for each, within in zip(names, inside, strict=True)
    ]
    titles = [data.name for data in found]
    titles = titles if len(set(titles)) == len(titles) else names
    for data in found:
        if data.task != "classify" or data.train.kind != "pictures":
            raise DataError(f"{name} takes data sets of pictures with classes, and {data.name} is another")
    starts = [sum(len(data.class_names) for data in found[:place]) for place in range(len(found))]
    train, val, test = (
        _joined([getattr(data, split) for data in found], titles, starts) for split in ("train", "val", "test")
    )
    recipes = {data.recipe for data in found}
    return SeveralData(
        "+".join(titles),
        tuple(f"{title}: {each}" for title, data in zip(titles, found, strict=True) for each in data.class_names),
        train, val, test,
        recipe=recipes.pop() if len(recipes) == 1 else None,
        notes=tuple(note for data in found for note in data.notes),
        left_out=sum(data.left_out for data in found),
        parts=tuple((title, len(data.class_names)) for title, data in zip(titles, found, strict=True)),
        temperature=temperature,
    )  # fmt: skip


def _lies_in_a_folder(name: str) -> bool:
    """Whether a name, no path, is of a data set that lies in a folder."""
    return any(named(name, module) and "root" in inspect.signature(module.load).parameters for module in formats())


def _joined(parts: Sequence[Pictures], titles: Sequence[str], starts: Sequence[int]) -> Pictures:
    here = [
        replace(part, labels=part.labels + start, names=tuple(f"{title}/{part.name(i)}" for i in range(len(part))))
        for part, title, start in zip(parts, titles, starts, strict=True)
        if len(part)
    ]
    if not here:
        return parts[0]
    names, labels = tuple(name for part in here for name in part.names), torch.cat([part.labels for part in here])
    files = all(part.is_files for part in here)
    return Pictures([path for part in here for path in part.items] if files else Mixed(here), labels, names=names)


class Mixed(Sequence):
    """Files, decoded pictures and what else there is one behind the other, read when asked for."""

    def __init__(self, parts: Sequence[Pictures]) -> None:
        self.parts = list(parts)

    @functools.cached_property
    def fingerprint(self) -> str | None:
        each = [fingerprint(part) for part in self.parts]
        return None if None in each else "+".join(map(str, each))

    def __len__(self) -> int:
        return sum(map(len, self.parts))

    def __getitem__(self, i: int) -> Path | Image.Image:
        for part in self.parts:
            if i < len(part):
                item = part.items[i]
                return Image.fromarray(item.permute(1, 2, 0).numpy()) if isinstance(item, torch.Tensor) else item
            i -= len(part)
        raise IndexError(i)


def one_at_a_time(
    labels: torch.Tensor, classes: Sequence[int], temperature: float, seed: int
) -> Callable[[int, int], torch.Tensor]:
    """(epoch, pictures a step) → which pictures come, int64: as many steps as all pictures take, each of one data set, which is
    drawn by size^(1/T), its pictures with replacement; as rabeehk/hyperformer (56b0f99) draws them.

    Args:
        labels: of all pictures.
        classes: how many each data set has.
    """
    stops = torch.tensor(classes).cumsum(0)
    owner = torch.bucketize(labels.cpu(), stops, right=True)
    rows = [(owner == place).nonzero().flatten() for place in range(len(classes))]
    weights = torch.tensor([float(len(each)) for each in rows], dtype=torch.float64) ** (1 / temperature)

    def draw(epoch: int, step_size: int) -> torch.Tensor:
        chance = generator_of(seed, epoch)
        tasks = torch.multinomial(weights, -(-len(labels) // step_size), replacement=True, generator=chance)
        return torch.cat(
            [rows[task][torch.randint(len(rows[task]), (step_size,), generator=chance)] for task in tasks.tolist()]
        )

    return draw
