"""Prompts that start from what the training pictures give at their block."""

from collections.abc import Callable, Iterable
from itertools import islice
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from peft_core import lifecycle
from peft_core.errors import PeftError
from peft_core.grafts.tokens import Tokens
from peft_core.method import Method


class Drawn(nn.Module):
    """P (tokens, D); while `look` is set it shows that the block's tokens behind the prefix, and gives no prompts."""

    def __init__(self, values: nn.Parameter, prefix: int) -> None:
        super().__init__()
        self.values, self.prefix = values, prefix
        self.look: Callable[[Tensor], Any] | None = None

    def forward(self, x: Tensor) -> Tensor:
        if self.look is None:
            return self.values
        self.look(x[:, self.prefix :].detach())
        return self.values[:0]


class Mean:
    """The mean over pictures of the token at each position, pooled adaptively to as many as are wanted."""

    def __init__(self) -> None:
        self.total: Tensor | None = None
        self.pictures = 0

    def __call__(self, tokens: Tensor) -> None:
        summed = tokens.double().sum(0)
        if self.total is not None and self.total.shape != summed.shape:
            raise PeftError(
                "prompts start from the mean of patches, which pictures of several sizes have not: give one size."
            )
        self.total = summed if self.total is None else self.total + summed
        self.pictures += len(tokens)

    def give(self, count: int) -> Tensor:
        assert self.total is not None
        return F.adaptive_avg_pool1d((self.total / self.pictures).t(), count).t()


class Draw:
    """Tokens drawn from those seen, none twice where they suffice."""

    def __init__(self) -> None:
        self.seen: list[Tensor] = []

    def __call__(self, tokens: Tensor) -> None:
        self.seen.append(tokens.flatten(0, 1))

    def give(self, count: int) -> Tensor:
        seen = torch.cat(self.seen)
        order = torch.randperm(len(seen), device=seen.device)
        return seen[order.repeat(-(-count // len(seen)))[:count]]


@torch.no_grad()
def start_from_patches(
    model: nn.Module, method: Method, losses: Iterable[Any], kind: type[Mean] | type[Draw], batches: int | None = None
) -> None:
    """P ← what `kind` makes of the tokens that each of the method's blocks receives, in up to `batches` batches without
    prompts."""
    grafts = list(lifecycle.own_grafts(model, method, Tokens))
    made = [g.tokens for g in grafts if isinstance(g.tokens, Drawn)]
    found, counts = [kind() for _ in made], [graft.count for graft in grafts]
    try:
        for graft in grafts:
            graft.count = 0
        for prompts, look in zip(made, found, strict=True):
            prompts.look = look
        for _ in islice(losses, batches):
            pass
    finally:
        for graft, count in zip(grafts, counts, strict=True):
            graft.count = count
        for prompts in made:
            prompts.look = None
    for prompts, look in zip(made, found, strict=True):
        prompts.values.copy_(look.give(len(prompts.values)))
