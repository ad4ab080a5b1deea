"""What video methods share: frames that stand folded into the batch, and the convolution over them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from peft_core.errors import PeftError
from peft_core.method import Plan


def clips_of(x: Tensor, frames: int) -> Tensor:
    """(B·T) N D as B T N D.

    Raises:
        PeftError: the batch is no whole number of clips.
    """
    if x.shape[0] % frames:
        raise PeftError(
            f"a batch of {x.shape[0]} frames is no whole number of clips of {frames}: give clips of {frames} frames, or "
            f"set the method's frames."
        )
    return x.unflatten(0, (-1, frames))


def check_tower(plan: Plan) -> None:
    """Frames are folded into the batch of a tower whose blocks take B N D with fixed positions.

    Raises:
        PeftError: another kind of tower.
    """
    for tower in plan.anatomy.blocks:
        stream = plan.anatomy.streams.get(tower)
        if plan.method.tower in (None, tower) and (stream is None or not stream.takes_tokens or stream.rotary):
            reason = "rotary positions tie its attention to one kind of sequence"
            if stream is None or stream.tokens_refused:
                reason = (
                    stream.tokens_refused
                    if stream and stream.tokens_refused
                    else "its stream changes from block to block"
                )
            raise PeftError(f"{plan.method.name} cannot run this {plan.anatomy.family} over time: {reason}.")


def share_of_stream(plan: Plan, width: int | Sequence[int] | None, divisor: int) -> int | Sequence[int]:
    """The width asked for; where None was, the stream's own over `divisor` (of the narrowest tower)."""
    if width is not None:
        return width
    return max(1, min(plan.stream_of(step).width for step in plan.anatomy.sublayers) // divisor)


def add_weighed(x: Tensor, change: Tensor, factor: float) -> Tensor:
    """x + factor · change, in x's precision."""
    return x + (change if factor == 1.0 else change * factor).to(x.dtype)


class DepthwiseOverTime(nn.Module):
    """y[t] = w₀ x[t−1] + w₁ x[t] + w₂ x[t+1] + b for every channel by itself; B T N C, zeros beside the ends.

    The depth-wise 3-D convolution of kernel (3, 1, 1), weight (C, 1, 3, 1, 1) as `nn.Conv3d` has it; the fastest of the
    ways that `benchmarks.video_step` measures. Weight and bias start at zero.
    """

    def __init__(self, channels: int, options: dict[str, Any]) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(channels, 1, 3, 1, 1, **options))
        self.bias = nn.Parameter(torch.zeros(channels, **options))

    def forward(self, x: Tensor) -> Tensor:
        weight, bias = self.weight[..., 0].to(x.dtype), self.bias.to(x.dtype)
        # channels stay last: a 2-D convolution over T × N is some 20 times as fast on a CPU as conv3d with them in front
        y = F.conv2d(x.permute(0, 3, 1, 2), weight, bias, padding=(1, 0), groups=x.shape[-1])
        return y.permute(0, 2, 3, 1)
