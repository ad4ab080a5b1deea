"""Parameters of weight changes: where they live, and how small factors make a big weight."""

from typing import Any

import torch
from torch import Tensor, nn


def new_parameter(weight: Tensor, *shape: int) -> nn.Parameter:
    """An empty parameter on the weight's device, in float32 or the weight's own higher precision."""
    options: dict[str, Any] = dict(device=weight.device, dtype=torch.promote_types(weight.dtype, torch.float32))
    return nn.Parameter(torch.empty(*shape, **options))


def rows_of(weight: Tensor, rows: tuple[int, int] | None) -> int:
    return weight.shape[0] if rows is None else rows[1] - rows[0]


def add_scaled(weight: Tensor, change: Tensor, scale: float) -> Tensor:
    """W + s·C in the precision of C, given back in that of W."""
    return torch.add(weight, change.reshape(weight.shape), alpha=scale).to(weight.dtype)


def tucker(core: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """A convolution's weight (out, in, kh, kw) from its core (r, r, kh, kw), a (r, out) and b (r, in), or several."""
    return torch.einsum("...ijhw,...io,...jc->...ochw", core, a, b)


def is_spatial(weight: Tensor) -> bool:
    """Whether it is a convolution's weight with a kernel larger than 1 × 1."""
    return weight.dim() == 4 and weight[0, 0].numel() > 1


def split_dimension(size: int, factor: int) -> tuple[int, int]:
    """size = small · large: by `factor` where that divides it, else the most even split with small ≤ factor (−1: any)."""
    if factor > 0 and size % factor == 0:
        return min(factor, size // factor), max(factor, size // factor)
    limit = size if factor < 0 else factor
    small = max(n for n in range(1, int(size**0.5) + 1) if size % n == 0 and n <= max(1, limit))
    return small, size // small
