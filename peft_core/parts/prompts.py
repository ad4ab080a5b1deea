"""How prompt tokens start."""

import math
from typing import Any

import torch
from torch import nn

from peft_core.anatomies import Stream


def uniform_prompts(count: int, stream: Stream, options: dict[str, Any], dim: int | None = None) -> nn.Parameter:
    """P (count, D) ~ U(−v, v) with v = √(6/(3·p² + D)) for patches of p pixels, as KMnP/vpt."""
    dim = stream.width if dim is None else dim
    bound = math.sqrt(6 / (3 * stream.patch**2 + dim))
    return nn.Parameter(torch.empty(count, dim, **options).uniform_(-bound, bound))
