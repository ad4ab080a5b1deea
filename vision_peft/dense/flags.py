"""`--dense.head pyramid`: what stands on the backbone of tasks on feature maps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Literal

from peft_core.jobs.cli.options import Choice
from peft_core.values import Count, Range


def options(
    head: Literal["linear", "pyramid"] = "linear", size: Annotated[int, Range(0, 4096)] = 0, width: Count = 64
) -> None:
    """What stands on the backbone of tasks on feature maps: pixels, boxes.

    Args:
        head: `linear`, one layer a pixel of the backbone's maps, or `pyramid`, UPerNet's: pooled context, top down, fused;
            under boxes top down, and two convolutions.
        size: Of the pictures, their side in pixels; 0 takes the backbone's. A ViT's positions are resized.
        width: Channels of the pyramid, and of what boxes are read from.
    """


class DenseFlags(Choice):
    """`--dense.head pyramid`; has no effect on other tasks."""

    named, brief = False, True

    @classmethod
    def accepts(cls, name: str) -> Callable:
        return options
