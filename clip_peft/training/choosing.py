"""Settings that are chosen on labelled pictures: those of val, or the training ones, each left out in turn."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

FOLDS = 16
Part = tuple[Any, Tensor, Tensor]


@torch.no_grad()
def choose(whole: Any, parts: Iterable[Part], on: str) -> dict[str, Any]:
    """Sets the learner to those of its settings that name most pictures right, the least loss among equals; what was found, or
    {} where there is nothing to choose.

    Args:
        parts: learners, with features B E and labels of pictures that they did not learn from.
        on: what these are, for the report.
    """
    settings: list[dict[str, Any]] = []
    scores = torch.zeros(0, 2, dtype=torch.float64)
    count = 0
    for learner, features, labels in parts:
        found = [(each, _score(logits, labels)) for each, logits in learner.choices(features)]
        if not found:
            return {}
        settings = [each for each, _ in found]
        added = torch.tensor([score for _, score in found], dtype=torch.float64)
        scores = added if not count else scores + added
        count += len(labels)
    if not count:
        return {}
    best = max(range(len(settings)), key=lambda place: tuple(scores[place].tolist()))  # the first among equals
    learner = whole.learner
    learner.method = whole.method = dataclasses.replace(learner.method, **settings[best])
    return {"settings": settings[best], "on": on, "accuracy": scores[best, 0].item() / count, "pictures": count}


def _score(logits: Tensor, labels: Tensor) -> tuple[float, float]:
    right = (logits.argmax(-1) == labels).sum().item()
    return right, -F.cross_entropy(logits.float(), labels, reduction="sum").item()


def each_left_out(learner: Any, views: Tensor, labels: Tensor) -> Iterator[Part]:
    """Parts of the training pictures, K views of N, each with a learner that was told of the others: in turn the j-th picture
    of each class that has several; a class's only picture stays and is asked for by another view. Nothing for one view of one
    picture a class, where nothing is left to learn from.
    """
    place, several = _places(labels)
    for fold in range(min(FOLDS, int(place.max()) + 1 if len(place) else 0)):
        view = fold % len(views)
        out = several & (place % FOLDS == fold)
        asked = out if len(views) == 1 else out | ~several
        if not bool(asked.any()):
            continue
        rest = [k for k in range(len(views)) if k != view] or [0]
        one = twin(learner)
        one.remember(views[rest][:, ~out], labels[~out])
        yield one, views[view][asked], labels[asked]


def _places(labels: Tensor) -> tuple[Tensor, Tensor]:
    """Which picture of its class each is, from 0, and whether the class has several."""
    seen: dict[int, int] = {}
    place = []
    for label in labels.tolist():
        place.append(seen.get(label, 0))
        seen[label] = place[-1] + 1
    several = [seen[label] > 1 for label in labels.tolist()]
    return torch.tensor(place, device=labels.device), torch.tensor(several, device=labels.device)


def twin(learner: Any) -> Any:
    """The same learner with tensors of its own to replace, around the same model."""
    other = copy.copy(learner)
    other._parameters, other._buffers = dict(learner._parameters), dict(learner._buffers)
    other._kept = {}
    return other
