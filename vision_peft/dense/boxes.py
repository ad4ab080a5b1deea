"""FCOS (Tian et al., ICCV 2019) beside its network: which place of the maps learns which box, the losses, and boxes from outputs.

Outputs are `B A K+9`: of each place the logits of K classes, its centredness, distances to the left, top, right and bottom
side in units of the map's stride, the place's centre in pixels, and its map's stride in both. Boxes are `B M 6`: class, sides in
pixels, 1 where hard; -1 fills up.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import batched_nms, generalized_box_iou_loss, sigmoid_focal_loss

RADIUS, LOWER, UPPER = 1.5, 4, 8
"""A place learns a box within 1.5 strides of its centre whose farthest side is 4 to 8 strides away; the first and the last map
take what is nearer and farther."""


class Places(NamedTuple):
    """Outputs in their parts."""

    logits: Tensor
    centred: Tensor
    distances: Tensor
    centres: Tensor
    strides: Tensor

    @classmethod
    def of(cls, outputs: Tensor) -> Places:
        outputs = outputs.float()
        return cls(outputs[..., :-9], outputs[..., -9], *outputs[..., -8:].split((4, 2, 2), -1))

    @property
    def boxes(self) -> Tensor:
        """What the distances say, `B A 4` in pixels."""
        low, high = self.distances[..., :2] * self.strides, self.distances[..., 2:] * self.strides
        return torch.cat([self.centres - low, self.centres + high], -1)


def inside(centres: Tensor, boxes: Tensor) -> Tensor:
    """Distances of places `A 2` to the sides of boxes `B M 4`, `B A M 4`; negative from outside."""
    low = centres[None, :, None] - boxes[:, None, :, :2]
    return torch.cat([low, boxes[:, None, :, 2:] - centres[None, :, None]], -1)


def matched(places: Places, boxes: Tensor) -> tuple[Tensor, Tensor]:
    """Which box each place learns, `B A`, -1 for none: of those it lies in and near the centre of, the smallest; and whether it
    lies in a hard box and learns nothing of it."""
    centres, strides = places.centres[0], places.strides[0]
    sides, known, hard = boxes[..., 1:5], boxes[..., 0] >= 0, boxes[..., 5] == 1
    far = inside(centres, sides)
    middle = (sides[..., :2] + sides[..., 2:]) / 2
    near = ((centres[None, :, None] - middle[:, None]).abs() < RADIUS * strides[None, :, None]).all(-1)
    size = strides.amax(-1)
    lower = torch.where(size == size.min(), 0.0, LOWER * size)
    upper = torch.where(size == size.max(), torch.inf, UPPER * size)
    most = far.amax(-1)
    takes = near & (far.amin(-1) > 0) & (most > lower[:, None]) & (most < upper[:, None])
    takes &= (known & ~hard)[:, None]
    area = (sides[..., 2:] - sides[..., :2]).prod(-1)[:, None].expand_as(most)
    least, which = area.masked_fill(~takes, torch.inf).min(-1)
    left_out = ((far.amin(-1) > 0) & (known & hard)[:, None]).any(-1)
    return torch.where(least < torch.inf, which, -1), left_out


def loss(outputs: Tensor, boxes: Tensor) -> Tensor:
    """(Focal loss of classes + GIoU loss + binary cross-entropy of centredness) / places that learn a box. A place in a hard box
    alone learns nothing."""
    places = Places.of(outputs)
    which, left_out = matched(places, boxes)
    learns = which >= 0
    chosen = boxes.gather(1, which.clamp(min=0)[..., None].expand(-1, -1, 6))
    target = F.one_hot(chosen[..., 0].clamp(min=0).long(), places.logits.shape[-1]) * learns[..., None]
    focal = sigmoid_focal_loss(places.logits, target.float(), reduction="none").sum(-1)
    focal = (focal * (learns | ~left_out)).sum()
    true = chosen[..., 1:5][learns]
    box = generalized_box_iou_loss(places.boxes[learns], true, reduction="sum")
    centres = places.centres[learns]
    low, high = centres - true[:, :2], true[:, 2:] - centres
    centred = (torch.minimum(low, high) / torch.maximum(low, high)).prod(-1).sqrt()
    middle = F.binary_cross_entropy_with_logits(places.centred[learns], centred, reduction="sum")
    return (focal + box + middle) / learns.sum().clamp(min=1)


def detections(outputs: Tensor, least: float = 0.05, overlap: float = 0.6, top: int = 1000, kept: int = 100) -> Tensor:
    """The boxes of each picture, `B kept 6`: class, sides in pixels cut at the picture's edges, score √(p_class · p_centred), the
    best first; -1 fills up.

    Args:
        least: score of a box that counts.
        overlap: IoU above which the lesser of two boxes of a class goes.
        top: boxes a map before that.
    """
    places = Places.of(outputs)
    out = places.logits.new_full((len(outputs), kept, 6), -1.0)
    if not outputs.shape[1]:
        return out
    edge = (places.centres[0] + places.strides[0] / 2).amax(0)
    scores = (places.logits.sigmoid() * places.centred.sigmoid()[..., None]).sqrt()
    maps = places.strides[0].amax(-1).unique_consecutive(return_counts=True)[1].tolist()
    for picture, sides in enumerate(places.boxes):
        found, start = [], 0
        for count in maps:
            score = scores[picture, start : start + count].flatten()
            rows = (score > least).nonzero()[:, 0]
            rows = rows[score[rows].argsort(descending=True, stable=True)[:top]]
            place, kind = rows // scores.shape[-1] + start, rows % scores.shape[-1]
            box = torch.minimum(sides[place].clamp(min=0), edge.repeat(2))
            found.append(torch.cat([kind[:, None].to(box), box, score[rows, None]], 1))
            start += count
        rows = torch.cat(found)
        rows = rows[batched_nms(rows[:, 1:5], rows[:, 5], rows[:, 0].long(), overlap)[:kept]]
        out[picture, : len(rows)] = rows
    return out
