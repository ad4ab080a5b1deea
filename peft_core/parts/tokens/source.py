"""Prompts of other runs, and how near two prompts are."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from peft_core.errors import PeftError
from peft_core.saved.card import read_card, read_weights

Measure = Literal["average", "flat", "per_token", "distance"]


def prompts_of(source: str | os.PathLike, blocks: Sequence[str], shape: torch.Size, who: str) -> list[Tensor]:
    """The prompts that stand before these blocks in an adapter folder, or in a run's.

    Raises:
        PeftError: there is no adapter, it has no such prompts, or others in number or width.
    """
    folder = Path(source)
    folder = folder / "adapter" if (folder / "adapter").is_dir() else folder
    read_card(folder)
    weights, found = read_weights(folder), []
    for block in blocks:
        start = f"{block}.peft."
        tails = (".tokens.tokens", ".tokens.tokens.values")
        here = [v for k, v in weights.items() if k.startswith(start) and k.endswith(tails) and v.dim() == 2]
        if not here:
            raise PeftError(f"{who}: {source} holds no prompts before {block}: name a run of prompts at the input.")
        if here[0].shape != shape:
            raise PeftError(
                f"{who}: {source} holds {here[0].shape[0]} prompts of width {here[0].shape[1]}, and {shape[0]} of width "
                f"{shape[1]} are wanted: take as many tokens, and a run of the same backbone."
            )
        found.append(here[0])
    return found


def nearness(one: Tensor, other: Tensor, measure: Measure) -> float:
    """Of two prompts P D, the larger the nearer: the cosine of their mean tokens (`average`) or of all numbers (`flat`), the mean
    cosine of all pairs of tokens (`per_token`), or 1/(1 + ‖one − other‖) (`distance`)."""
    one, other = one.double(), other.double().to(one.device)
    if measure == "average":
        return F.cosine_similarity(one.mean(0), other.mean(0), dim=0).item()
    if measure == "flat":
        return F.cosine_similarity(one.flatten(), other.flatten(), dim=0).item()
    if measure == "per_token":
        return (F.normalize(one, dim=1) @ F.normalize(other, dim=1).t()).mean().item()
    return 1 / (1 + (one - other).norm().item())
