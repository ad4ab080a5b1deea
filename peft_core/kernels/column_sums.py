"""Sums over rows of gradients and of their products with what was kept, on a CPU a piece at a time, which stays in the cache."""

from collections.abc import Iterator, Sequence
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
    dtype = _exact(g)
    found = [(gs.sum(0, dtype=dtype), (gs * ys).sum(0, dtype=dtype)) for gs, ys in in_pieces(g, y)]
    one, other = (_added(each) for each in zip(*found, strict=True))
    return one, other


def column_products(g: Annotated[Tensor, "N D"], y: Annotated[Tensor, "N D"]) -> Annotated[Tensor, "D"]:
    """Σ g ⊙ y over the rows, in float32 or better."""
    return _added([(gs * ys).sum(0, dtype=_exact(g)) for gs, ys in in_pieces(g, y)])


def _exact(g: Tensor) -> torch.dtype:
    return torch.promote_types(g.dtype, torch.float32)


def _added(found: Sequence[Tensor]) -> Tensor:
    return torch.stack(list(found)).sum(0) if len(found) > 1 else found[0]
