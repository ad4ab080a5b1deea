"""Sums over rows of gradients and of their products with what was kept, on a CPU a piece at a time, which stays in the cache."""

from collections.abc import Iterator
from typing import Annotated

import torch
from torch import Tensor

PIECE = 2**17
"""Elements of a piece: 512 KB in float32. Its product is written where the last one was, not to fresh memory."""


def in_pieces(*tensors: Annotated[Tensor, "N D"]) -> Iterator[tuple[Tensor, ...]]:
    """The same rows of each; all of them at once where that is as good."""
    first = tensors[0]
    if first.device.type != "cpu" or first.numel() <= PIECE or torch.is_grad_enabled() or torch.compiler.is_compiling():
        yield tensors
        return
    yield from zip(*(tensor.split(max(1, PIECE // first.shape[1])) for tensor in tensors), strict=True)


def column_sums(g: Annotated[Tensor, "N D"], y: Annotated[Tensor, "N D"]) -> tuple[Tensor, Tensor]:
    """Σ g and Σ g ⊙ y over the rows, in float32 or better."""
    one, other = zip(*((_sum(gs), _sum(gs * ys)) for gs, ys in _exact(g, y)), strict=True)
    return torch.stack(one).sum(0), torch.stack(other).sum(0)


def column_products(g: Annotated[Tensor, "N D"], y: Annotated[Tensor, "N D"]) -> Annotated[Tensor, "D"]:
    """Σ g ⊙ y over the rows, in float32 or better."""
    return torch.stack([_sum(gs * ys) for gs, ys in _exact(g, y)]).sum(0)


def _exact(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Pieces; on a CPU, where they stay in the cache, with the digits of a sum."""
    for piece in in_pieces(*tensors):
        yield tuple(map(_wide, piece)) if piece[0].device.type == "cpu" else piece


def _wide(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _sum(x: Tensor) -> Tensor:
    """Over rows; a CPU's product with ones reads them at the speed of memory, its sum does not."""
    if x.device.type == "cpu":
        return x.new_ones(len(x)) @ x
    return x.sum(0, dtype=torch.promote_types(x.dtype, torch.float32))
