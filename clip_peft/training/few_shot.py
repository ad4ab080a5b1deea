"""CoOp's few-shot draw, and base and new classes: what the field's few-shot and base-to-new figures are made on."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Literal, cast

import torch
from peft_data import ClassificationData, DataError, Pictures
from peft_data.base import no_pictures

Classes = Literal["all", "base", "new"]
Spread = Literal["balanced", "natural"]
VAL_SHOTS = 4


def draw(labels: Sequence[int], shots: int, chance: random.Random) -> list[int]:
    """Rows of `shots` pictures of each class, of all where a class has fewer.

    Classes come in the order in which they first appear, the rows of one in the order in which they are drawn, with
    the standard library's generator: so the lists are those of Dassl's `generate_fewshot_dataset`, which CoOp uses.
    """
    rows: dict[int, list[int]] = {}
    for row, label in enumerate(labels):
        rows.setdefault(label, []).append(row)
    chosen = (chance.sample(own, shots) if len(own) >= shots else own for own in rows.values())
    return [row for own in chosen for row in own]


def draw_any(labels: Sequence[int], shots: int, chance: random.Random, classes: int) -> list[int]:
    """Rows of `shots` times as many pictures as there are classes, of whichever class."""
    return chance.sample(range(len(labels)), min(len(labels), shots * classes))


def few_shot(data: ClassificationData, shots: int, seed: int, spread: Spread = "balanced") -> ClassificationData:
    """`data` with `shots` training pictures a class and min(shots, 4) of val, drawn as CoOp draws them with `seed`.

    Both come from one generator, train first. A class with fewer training pictures trains with what there is; a note
    says which. `shots` 0 keeps all. With the spread `natural` as many are drawn without regard to their classes, which get
    what the data's own proportions and chance give them, some of them nothing (the setting of Silva-Rodríguez et al., "Few-Shot,
    Now for Real", 2025, 2506.17500).

    Raises:
        DataError: a negative number of shots.
    """
    if shots < 0:
        raise DataError(f"shots must be 1 or more, or 0 for all pictures, not {shots}")
    if shots == 0:
        return data
    chance = random.Random(seed)
    pick = draw if spread == "balanced" else partial(draw_any, classes=len(data.class_names))
    train = data.train.subset(pick(data.train.labels.tolist(), shots, chance))
    val = data.val
    if len(val):
        val = val.subset(pick(val.labels.tolist(), min(shots, VAL_SHOTS), chance))
    counts = torch.bincount(train.labels, minlength=len(data.class_names)).tolist()
    few = [f"{name} {count}" for name, count in zip(data.class_names, counts, strict=True) if count < shots]
    notes = data.notes
    if spread == "natural":
        none = sum(count == 0 for count in counts)
        notes += (
            f"classes have {min(counts)} to {max(counts)} training pictures, {none} of them none, as they were drawn",
        )
    elif few:
        shown = ", ".join(few[:8]) + (f" and {len(few) - 8} more" if len(few) > 8 else "")
        notes += (f"these classes have fewer than {shots} pictures and train with what there is: {shown}",)
    return replace(data, train=train, val=val, notes=notes)


def of_classes(data: ClassificationData, which: Classes) -> ClassificationData:
    """The data with the first ⌈n/2⌉ of its n labels (`base`), with the others (`new`), counted from 0, or with all. Pictures of
    any number of labels all stay, with those of their labels that do."""
    if which == "all":
        return data
    half = math.ceil(len(data.class_names) / 2)
    kept = range(half) if which == "base" else range(half, len(data.class_names))
    if len(kept) < 2:
        raise DataError(
            f"{data.name} has {len(data.class_names)} classes, too few for base and new ones: it needs four"
        )
    relabelled = _relabelled if data.task == "classify" else _of_columns
    parts = [relabelled(getattr(data, split), kept, split) for split in ("train", "val", "test")]
    return replace(data, class_names=tuple(data.class_names[label] for label in kept), train=parts[0], val=parts[1],
                   test=parts[2])  # fmt: skip


def _relabelled(pictures: Pictures, kept: range, split: str) -> Pictures:
    rows = ((pictures.labels >= kept.start) & (pictures.labels < kept.stop)).nonzero()[:, 0]
    if not len(rows):
        return no_pictures(split)
    part = pictures.subset(rows)
    return replace(part, labels=part.labels - kept.start)


def _of_columns(pictures: Pictures, kept: range, split: str) -> Pictures:
    return replace(pictures, labels=pictures.labels[:, kept.start : kept.stop]) if len(pictures) else pictures


def held_out(data: ClassificationData, share: float) -> ClassificationData:
    """`data` whose val are the first ⌈share · n⌉ of the n training pictures of each class, which then do not train; as
    ELEVATER's toolkit parts them.

    Raises:
        DataError: no picture is left of a class, or a picture has any number of labels.
    """
    if not share:
        return data
    if data.task != "classify":
        raise DataError(f"pictures of {data.name} have any number of labels, so none are held out of a class's")
    labels, val = data.train.labels, list[int]()
    for label, count in enumerate(torch.bincount(labels, minlength=len(data.class_names)).tolist()):
        kept = math.ceil(count * share)
        if count and kept == count:
            name = data.class_names[label]
            raise DataError(
                f"of {name} all {count} training pictures would be held out: give more --shots, or --hold_out 0"
            )
        val += (labels == label).nonzero()[:kept, 0].tolist()
    rest = [row for row in range(len(labels)) if row not in {*val}]
    return replace(data, train=data.train.subset(rest), val=replace(data.train.subset(sorted(val)), split="val"))


def chosen(
    data: ClassificationData,
    shots: int,
    seed: int,
    which: str,
    spread: Spread = "balanced",
    hold_out: float = 0.0,
) -> ClassificationData:
    """What a run trains and is scored on: the draw, then the classes, as CoOp does it; then what is held out.

    Raises:
        DataError: shots of a class, where a picture has any number of labels.
    """
    if shots and data.task != "classify":
        raise DataError(
            f"pictures of {data.name} have any number of labels, and no shots of one: give --shots 0, for all"
        )
    return held_out(of_classes(few_shot(data, shots, seed, spread), cast(Classes, which)), hold_out)
