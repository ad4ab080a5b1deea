"""`--video.attention joint`: how a model runs on clips."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from peft_core.jobs.cli.options import Choice
from peft_core.values import Count, Rate


def options(attention: Literal["frames", "joint"] = "frames", tubelet: Count = 2, dropout: Rate = 0.0) -> None:
    """How a model runs on clips.

    Args:
        attention: `frames` runs the image model on each frame and averages features over time, which a method may mix;
            `joint` gives the tokens of all frames to one attention.
        tubelet: Frames a token of `joint` spans.
        dropout: Before the head.
    """


class VideoFlags(Choice):
    """`--video.attention joint`: how a model runs on clips; has no effect on pictures."""

    named = False

    @classmethod
    def accepts(cls, name: str) -> Callable:
        return options
