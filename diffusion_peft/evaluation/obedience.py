"""Does a picture obey its condition? Figures as functions of tensors, and which of them suit which data."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor
from torch.nn import functional as F

from diffusion_peft.evaluation.watcher import CLASSES, LEAST_THING, Seen

Boxes = Sequence[tuple[tuple[float, ...], int]]
"""Boxes of one picture, left, top, right, bottom in [0, 1], with their classes."""
Found = Sequence[tuple[tuple[float, ...], int, float]]
"""The same as detected, with scores."""


def edge_f1(said: Tensor, true: Tensor, reach: int = 1) -> float:
    """Mean over pictures of 2 P R / (P + R) of outlines N S S bool; a pixel counts where the other side has one within
    `reach` pixels. A picture without outlines on both sides counts 1."""

    def near(mask: Tensor) -> Tensor:
        return F.max_pool2d(mask[:, None].float(), 2 * reach + 1, 1, reach)[:, 0] > 0

    axes = (1, 2)
    precision = ((said & near(true)).sum(axes) / said.sum(axes).clamp(min=1)).where(said.any(1).any(1), torch.zeros(()))
    recall = ((true & near(said)).sum(axes) / true.sum(axes).clamp(min=1)).where(true.any(1).any(1), torch.zeros(()))
    both = 2 * precision * recall / (precision + recall).clamp(min=1e-9)
    empty = ~said.any(1).any(1) & ~true.any(1).any(1)
    return float(torch.where(empty, torch.ones(()), both).mean())


def ssim(said: Tensor, true: Tensor) -> float:
    """Structural similarity of maps N S S in [0, 1], mean over pictures (Wang et al., 2004)."""
    from torchmetrics.functional.image import structural_similarity_index_measure

    found = structural_similarity_index_measure(said[:, None].float(), true[:, None].float(), data_range=1.0)
    return float(found[0] if isinstance(found, tuple) else found)


def mean_iou(said: Tensor, true: Tensor, classes: int) -> float:
    """Mean over the classes that occur in `true` of intersection / union over all pictures; class maps N S S."""
    counts = torch.bincount((true * classes + said).flatten(), minlength=classes**2).view(classes, classes).float()
    both, union = counts.diag(), counts.sum(0) + counts.sum(1) - counts.diag()
    there = counts.sum(1) > 0
    return float((both[there] / union[there]).mean())


def rmse(said: Tensor, true: Tensor) -> float:
    """Root mean squared error, mean over pictures."""
    return float((said.float() - true.float()).square().flatten(1).mean(1).sqrt().mean())


def iou(a: Sequence[float], b: Sequence[float]) -> float:
    """Intersection over union of two boxes."""
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0.0
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (a, b)]
    return width * height / (sum(areas) - width * height)


def average_precision(found: Sequence[Found], true: Sequence[Boxes], least: float = 0.5) -> float:
    """AP at an IoU of `least`, mean over the classes that occur: the area under precision, made falling, over recall."""
    classes = sorted({kind for boxes in true for _, kind in boxes})
    areas = []
    for wanted in classes:
        total = sum(kind == wanted for boxes in true for _, kind in boxes)
        said = sorted(
            (
                (score, number, box)
                for number, boxes in enumerate(found)
                for box, kind, score in boxes
                if kind == wanted
            ),
            key=lambda each: -each[0],
        )
        taken: set[tuple[int, int]] = set()
        hits = []
        for _, number, box in said:
            free = [
                (iou(box, other), place)
                for place, (other, kind) in enumerate(true[number])
                if kind == wanted and (number, place) not in taken
            ]
            best, place = max(free, default=(0.0, -1))
            hits.append(best >= least)
            if best >= least:
                taken.add((number, place))
        right = np.cumsum(hits)
        precision = right / np.arange(1, len(hits) + 1)
        precision = np.maximum.accumulate(precision[::-1])[::-1]
        areas.append(float((precision * np.asarray(hits)).sum() / total) if hits else 0.0)
    return float(np.mean(areas)) if areas else 0.0


def detect(seen: Seen) -> list[Found]:
    """Connected things in class maps: box, class (1 … 12) and mean chance."""
    found: list[Found] = []
    for classes, chances in zip(seen.classes.numpy(), seen.chances.numpy(), strict=True):
        things = []
        blobs, count = ndimage.label(classes > 0)  # type: ignore
        for blob in range(1, count + 1):
            inside = blobs == blob
            if inside.sum() >= LEAST_THING:
                mean = chances[1:, inside].mean(1)
                rows, columns = np.nonzero(inside)
                height, width = classes.shape
                box = (
                    columns.min() / width,
                    rows.min() / height,
                    (columns.max() + 1) / width,
                    (rows.max() + 1) / height,
                )
                things.append((tuple(map(float, box)), int(mean.argmax()) + 1, float(mean.max())))
        found.append(things)
    return found


def world_figures(
    seen: Seen, classes: Tensor, nearness: Tensor, outlines: Tensor, boxes: Sequence[Boxes]
) -> dict[str, float]:
    """All figures of pictures of the drawn world, whose layers (N S S) and boxes are known."""
    said = seen.outlines > 0.5
    return {
        "edge_f1": edge_f1(said, outlines),
        "edge_ssim": ssim(seen.outlines, outlines),
        "miou": mean_iou(seen.classes, classes, CLASSES),
        "thing_iou": mean_iou((seen.classes > 0).long(), (classes > 0).long(), 2),
        "depth_rmse": rmse(seen.nearness, nearness),
        "box_ap": average_precision(detect(seen), boxes),
    }
