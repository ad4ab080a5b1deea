"""Scores averaged over a clip's views."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def over_views(model: Callable[[Tensor], Tensor], clips: Tensor) -> Tensor:
    """log (Σ_v softmax(model(clip of view v)) / V) for clips B V T 3 H W: a softmax of it is the mean of the views' scores."""
    scores = model(clips.flatten(0, 1)).float().log_softmax(-1).unflatten(0, clips.shape[:2])
    return torch.logsumexp(scores, 1) - torch.log(torch.tensor(float(clips.shape[1])))
