"""Splits that a seed draws."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from peft_data.base import Pictures, no_pictures
from peft_data.errors import DataError


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


def three_parts(pictures: Pictures, val: float, test: float, seed: int) -> tuple[Pictures, Pictures, Pictures]:
    """Train, val and test drawn from one set; `val` and `test` are parts of it.

    Raises:
        DataError: the parts leave nothing to train on.
    """
    if not (0 <= val < 1 and 0 <= test < 1 and val + test < 1):
        raise DataError(f"val={val} and test={test} must be parts of one, and leave something to train on")
    n_val, n_test = (round(part * len(pictures)) for part in (val, test))
    parts = stratified(pictures.labels, (len(pictures) - n_val - n_test, n_val, n_test), seed)
    train, val_part, test_part = (pictures.subset(part) for part in parts)
    return train, val_part, test_part


def tenth_as_val(train: Pictures, seed: int) -> tuple[Pictures, Pictures]:
    """Train and val where a set has no val: a tenth of train, drawn by the seed."""
    n_val = math.floor(len(train) / 10)
    if not n_val:
        return train, no_pictures("val")
    rest, part = stratified(train.labels, (len(train) - n_val, n_val), seed)
    return train.subset(rest), train.subset(part)
