"""The figures of an evaluation as functions of unit feature vectors."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor


def likeness(drawn: Tensor, real: Tensor) -> float:
    """Mean cosine of all pairs of drawn (N D) and real (M D) pictures: DreamBooth's DINO and CLIP-I."""
    return float((drawn @ real.T).mean())


def pairs(features: Tensor) -> Tensor:
    """Cosines of all pairs of different pictures among N D, N(N − 1) values."""
    return (features @ features.T)[~torch.eye(len(features), dtype=torch.bool)]


def separation(same: Tensor, other: Tensor) -> float:
    """Share of (same, other) couples in which the same subject's pair is the more alike; 0.5 is chance."""
    ranked = torch.searchsorted(other.flatten().sort().values, same.flatten().contiguous())
    return float(ranked.double().mean() / other.numel())


def prompt_fidelity(images: Tensor, texts: Tensor, right: Tensor) -> dict[str, float]:
    """CLIP-T and what it stands between.

    Args:
        images: N D. texts: P D. right: N, each picture's prompt.

    Returns: `clip_t`, the mean cosine of a picture and its prompt; `clip_t_wrong`, that with the other prompts;
        `prompt_accuracy`, the share of pictures that their own prompt fits best of the P (R-precision; chance is 1/P).
    """
    cosines = images @ texts.T
    own = torch.zeros_like(cosines, dtype=torch.bool)
    own[torch.arange(len(images)), right] = True
    found = {"clip_t": float(cosines[own].mean())}
    if len(texts) > 1:
        found["clip_t_wrong"] = float(cosines[~own].mean())
        found["prompt_accuracy"] = float((cosines.argmax(1) == right).float().mean())
    return found


def diversity(groups: Sequence[Tensor]) -> float | None:
    """Mean of 1 − cosine over pairs of pictures of the same prompt; None where no prompt has two."""
    several = [1 - pairs(group).mean() for group in groups if len(group) > 1]
    return float(torch.stack(several).mean()) if several else None


def drift(now: Tensor, before: Tensor) -> float:
    """Mean of 1 − cosine between pictures of the same prompt and seed, N D each: how far they moved."""
    return float((1 - (now * before).sum(1)).mean())


def summarise(rows: Iterable[Mapping[str, Any]], by: str, keys: Sequence[str]) -> list[dict[str, Any]]:
    """One row a value of `by`, in their order: how many runs, and for each key the mean and `KEY_std` over them (the
    standard deviation; None with one run)."""
    groups: dict[Any, list[Mapping[str, Any]]] = {}
    for row in rows:
        groups.setdefault(row[by], []).append(row)
    found = []
    for name, members in groups.items():
        line: dict[str, Any] = {by: name, "runs": len(members)}
        for key in keys:
            values = [row[key] for row in members if row.get(key) is not None]
            line[key] = statistics.fmean(values) if values else None
            line[f"{key}_std"] = statistics.stdev(values) if len(values) > 1 else None
        found.append(line)
    return found
