"""How prompt tokens start."""

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from peft_core.anatomies import Stream
from peft_core.errors import PeftError
from peft_core.method import Plan


def uniform_prompts(count: int, stream: Stream, options: dict[str, Any], dim: int | None = None) -> nn.Parameter:
    """P (count, D) ~ U(−v, v) with v = √(6/(3·p² + D)) for patches of p pixels, as KMnP/vpt."""
    dim = stream.width if dim is None else dim
    bound = math.sqrt(6 / (3 * stream.patch**2 + dim))
    return nn.Parameter(torch.empty(count, dim, **options).uniform_(-bound, bound))


def input_prompts(plan: Plan, count: int) -> Iterator[tuple[str | None, list[str], Stream, nn.Parameter]]:
    """Tower, blocks, stream and P (count, D) ~ U(−0.5, 0.5), as google-research/prompt-tuning, for prompts that stand at the
    first block's input and run through all blocks.

    Raises:
        PeftError: the method's blocks are chosen, or a tower takes no tokens.
    """
    if plan.method.blocks is not None:
        raise PeftError(f"{plan.method.name} puts its tokens in at the first block: leave `blocks` out.")
    for tower, paths in plan.towers():
        stream = plan.token_stream(tower)
        values = torch.empty(count, stream.width, **plan.options_at(paths[0])).uniform_(-0.5, 0.5)
        yield tower, paths, stream, nn.Parameter(values)
