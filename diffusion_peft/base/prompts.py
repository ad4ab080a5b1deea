"""A prompt as a base's text encoders say it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Prompt:
    """Embeddings B L D of prompts, or of the negative one.

    Args:
        pooled: B P, of bases that are told them.
        mask: B L, 1 where there is a word, of bases that look at it; all of `hidden` is read where None.
    """

    hidden: Tensor
    pooled: Tensor | None
    mask: Tensor | None = None

    def named(self) -> dict[str, Tensor]:
        """What there is of it, by name."""
        found = {"hidden": self.hidden, "pooled": self.pooled, "mask": self.mask}
        return {name: value for name, value in found.items() if value is not None}


def stacked(rows: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Prompts in one batch, each as `named` has it without the batch: shorter ones are padded with zeros, and the mask says
    so."""
    lengths = [len(row["hidden"]) for row in rows]
    if len(set(lengths)) > 1:
        rows = [row | {"mask": row.get("mask", row["hidden"].new_ones(len(row["hidden"])))} for row in rows]
    found = {}
    for name in rows[0]:
        values = [row[name] for row in rows]
        if name != "pooled" and len(set(lengths)) > 1:
            values = [_padded(value, max(lengths)) for value in values]
        found[name] = torch.stack(values)
    return found


def batched(prompts: Sequence[Prompt]) -> Prompt:
    """Prompts of one each in one batch."""
    found = stacked([{name: value[0] for name, value in prompt.named().items()} for prompt in prompts])
    return Prompt(found["hidden"], found.get("pooled"), found.get("mask"))


def _padded(value: Tensor, length: int) -> Tensor:
    return torch.cat([value, value.new_zeros(length - len(value), *value.shape[1:])])
