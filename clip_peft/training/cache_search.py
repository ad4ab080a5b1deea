"""α and β of a cache of training pictures (tip_adapter), chosen on validation pictures."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
import torch.nn.functional as F
from peft_data.cache import DecodedPictures

from clip_peft.training.features import Encoder

ALPHAS = [round(10 ** (i / 10), 3) for i in range(-10, 17)]  # 0.1 … 40
BETAS = [round(10 ** (i / 10), 3) for i in range(-10, 18)]  # 0.1 … 50


@torch.no_grad()
def search(encoder: Encoder, val: DecodedPictures | None) -> dict[str, Any]:
    """Sets the learner's α and β to the pair that names most validation pictures right, the least loss among equals; what
    was found, or {} where there is no val or both were given; one that was given stays.

    The published code searches a grid of each data set's own, on ImageNet the test pictures; here the grid is one for all.
    """
    learner: Any = encoder.whole.learner.eval()
    method = learner.method
    if not val or None not in (method.alpha, method.beta):
        return {}
    alpha, beta = method.strengths
    alphas = [alpha] if method.alpha is not None else [alpha, *ALPHAS]
    betas = [beta] if method.beta is not None else [beta, *BETAS]
    features = encoder.views(val, [None])[0].to(encoder.device)
    labels = val.labels.to(encoder.device)
    texts = learner.clip.scale * F.normalize(features, dim=-1) @ learner.weights().t()
    near = F.normalize(features, dim=-1) @ learner.keys.t()
    best: tuple[float, float] | None = None
    for beta in betas:
        weight = torch.exp(-beta * (1 - near))
        cache = weight.new_zeros(len(weight), len(learner.names)).index_add(1, learner.values, weight)
        for alpha in alphas:
            logits = texts + alpha * cache
            right = (logits.argmax(-1) == labels).float().mean().item()
            quality = (right, -F.cross_entropy(logits, labels).item())
            if best is None or quality > best:
                best, chosen = quality, (alpha, beta)
    changed = dataclasses.replace(method, alpha=chosen[0], beta=chosen[1])
    learner.method = encoder.whole.method = changed
    return {"alpha": chosen[0], "beta": chosen[1], "val_accuracy": best[0] if best else None, "val_pictures": len(val)}
