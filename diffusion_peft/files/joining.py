"""Several adapters' layers as one set of LoRA layers.

`cat` is exact: ranks side by side. The others work on the changes Δ_i of a weight, with weights w_i, and keep the largest
singular values of what comes of them: `svd` Σ w_i Δ_i; `ties` (Yadav et al., "TIES-Merging", NeurIPS 2023) trims each Δ_i to
its largest entries and takes, of each entry, the mean of those that have the sign of the sum; `dare` (Yu et al., "Language
Models are Super Mario", ICML 2024) drops entries at random and scales the rest up; `dare_ties` both; `magnitude` trims and adds.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from diffusion_peft.files.layers import Layer, side_by_side
from peft_core.errors import PeftError
from peft_core.parts.starts import principal

How = Literal["cat", "svd", "ties", "dare", "dare_ties", "magnitude"]


def joined(
    sets: Sequence[dict[str, Layer]], weights: Sequence[float], how: How, rank: int | None, density: float, seed: int
) -> dict[str, Layer]:
    """Path -> the one LoRA layer of all sets' LoRA layers there.

    Args:
        rank: of the result, the largest of the layers' own where None; `cat` adds the ranks.
        density: the share of entries that trimming and dropping keep.
    """
    if how == "cat" and rank is not None:
        raise PeftError("--how cat keeps all ranks, side by side: leave --rank out, or choose --how svd.")
    chance = torch.Generator().manual_seed(seed)
    found = {}
    for path in dict.fromkeys(path for layers in sets for path in layers):
        own = [(layers[path], weight) for layers, weight in zip(sets, weights, strict=True) if path in layers]
        if how == "cat":
            found[path] = side_by_side(own)
            continue
        changes = torch.stack([(layer.tensors["B"] @ layer.tensors["A"]) * layer.scale for layer, _ in own])
        whole = combined(changes, torch.tensor([weight for _, weight in own]), how, density, chance)
        down, up = principal(whole, rank or max(layer.rank for layer, _ in own), 1.0)
        found[path] = Layer("lora", {"A": down, "B": up})
    return found


def combined(changes: Tensor, weights: Tensor, how: How, density: float, chance: torch.Generator) -> Tensor:
    """One change out in of changes N out in."""
    if how in ("ties", "magnitude"):
        changes = torch.stack([trimmed(change, density) for change in changes])
    elif how in ("dare", "dare_ties") and density < 1:
        kept = [torch.bernoulli(torch.full_like(change, density), generator=chance) for change in changes]
        changes = changes * torch.stack(kept) / density
    agrees = torch.ones_like(changes)
    if how in ("ties", "dare_ties"):
        agrees = (changes.sign() == torch.where(changes.sum(0) >= 0, 1, -1)).to(changes)
    added = (changes * weights.view(-1, 1, 1) * agrees).sum(0)
    return added / agrees.sum(0).clamp(min=1) if how in ("ties", "dare_ties") else added


def trimmed(change: Tensor, density: float) -> Tensor:
    """With zeros in place of all but its largest entries."""
    if density >= 1:
        return change
    flat = change.flatten()
    kept = flat.abs().topk(int(density * flat.numel())).indices
    return torch.zeros_like(flat).scatter(0, kept, flat[kept]).view_as(change)
