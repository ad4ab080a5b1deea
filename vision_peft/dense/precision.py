"""Average precision of boxes as COCO counts it (its evaluation's rules, at any size of box)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from torch import Tensor

OVERLAPS = np.linspace(0.5, 0.95, 10)
RECALLS = np.linspace(0, 1, 101)


class BoxScores(NamedTuple):
    """Of one pass over a split.

    Args:
        precisions: AP of each class at each of the ten overlaps, `C 10`; NaN of a class without a box.
        counts: true boxes of each class that are not hard.
        found: predicted boxes of each picture, `N 100 6`.
        true: its true ones, `N M 6`.
    """

    precisions: np.ndarray
    counts: list[int]
    found: Tensor
    true: Tensor

    @property
    def each(self) -> np.ndarray:
        """AP of each class, the mean over overlaps of .5 to .95."""
        return self.precisions.mean(1)

    @property
    def value(self) -> float:
        """AP: the mean over the classes that there are."""
        return self.at(slice(None))

    def at(self, overlaps: slice) -> float:
        found = self.precisions[:, overlaps].mean(1)
        return float(found[~np.isnan(found)].mean()) if not np.isnan(found).all() else float("nan")


def scores(found: Tensor, true: Tensor, classes: int) -> BoxScores:
    """Predicted boxes `N P 6` (class, left, top, right, bottom, score, best first; -1 fills up) against true ones `N M 6` (… 1
    where hard)."""
    predicted, boxes = found.double().numpy(), true.double().numpy()
    precisions, counts = [], []
    for kind in range(classes):
        mine = [rows[rows[:, 0] == kind, 1:] for rows in predicted]
        theirs = [rows[rows[:, 0] == kind, 1:] for rows in boxes]
        counts.append(int(sum((rows[:, 4] == 0).sum() for rows in theirs)))
        precisions.append(_precision(mine, theirs, counts[-1]))
    return BoxScores(np.array(precisions), counts, found, true)


def _precision(found: Sequence[np.ndarray], true: Sequence[np.ndarray], count: int) -> np.ndarray:
    """AP of one class at each overlap: the precision at 101 recalls, each the best at that recall or a higher one."""
    if not count:
        return np.full(len(OVERLAPS), np.nan)
    hits, passed, sure = [], [], []
    for mine, theirs in zip(found, true, strict=True):
        hit, over = _hits(mine, theirs)
        hits.append(hit)
        passed.append(over)
        sure.append(mine[:, 4])
    order = np.argsort(-np.concatenate(sure), kind="stable")
    hit, over = np.concatenate(hits)[order], np.concatenate(passed)[order]
    out = np.zeros(len(OVERLAPS))
    for row in range(len(OVERLAPS)):
        right = np.cumsum(hit[:, row] & ~over[:, row])
        wrong = np.cumsum(~hit[:, row] & ~over[:, row])
        precision = np.maximum.accumulate((right / np.maximum(right + wrong, 1))[::-1])[::-1]
        place = np.searchsorted(right / count, RECALLS, side="left")
        out[row] = np.append(precision, 0.0)[place].mean()
    return out


def _hits(found: np.ndarray, true: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Whether each predicted box of a picture, best first, hits a true one at each overlap, and whether it does not count as it
    hits hard ones alone. A true box is hit once, hard ones any number of times."""
    hit, over = (np.zeros((len(found), len(OVERLAPS)), bool) for _ in range(2))
    if not len(true) or not len(found):
        return hit, over
    hard = true[:, 4] == 1
    low = np.maximum(found[:, None, :2], true[None, :, :2])
    high = np.minimum(found[:, None, 2:4], true[None, :, 2:4])
    both = (high - low).clip(min=0).prod(-1)
    own = (found[:, 2:4] - found[:, :2]).prod(-1)[:, None]
    union = np.where(hard[None], own, own + (true[:, 2:4] - true[:, :2]).prod(-1)[None] - both)
    share = both / np.maximum(union, 1e-12)
    for row, least in enumerate(np.minimum(OVERLAPS, 1 - 1e-10)):
        free = ~hard
        for each in range(len(found)):
            reach = np.where(free & (share[each] >= least), share[each], -1)
            if reach.max(initial=-1) >= 0:
                hit[each, row], free[len(reach) - 1 - int(reach[::-1].argmax())] = True, False
            elif (hard & (share[each] >= least)).any():
                over[each, row] = True
    return hit, over
