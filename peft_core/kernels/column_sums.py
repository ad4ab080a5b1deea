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
    dtype, found = torch.promote_types(g.dtype, torch.float32), list[tuple[Tensor, Tensor]]()
    for gs, ys in in_pieces(g, y):
        found.append((gs.sum(0, dtype=dtype), (gs * ys).sum(0, dtype=dtype)))
    one, other = (torch.stack(each).sum(0) if len(found) > 1 else each[0] for each in zip(*found, strict=True))
    return one, other
