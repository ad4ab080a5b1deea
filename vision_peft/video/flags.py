"""`--video.attention joint`: how a model runs on clips."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from peft_core.jobs.cli.options import Choice
from peft_core.values import Count, Rate


def options(
    attention: Literal["frames", "joint"] = "frames",
    tubelet: Count = 2,
    dropout: Rate = 0.0,
    head: Literal["linear", "batch_norm"] = "linear",
    norm: Literal["fresh", "file"] = "fresh",
) -> None:
    """How a model runs on clips.

    Args:
        attention: `frames` runs the image model on each frame and averages features over time, which a method may mix;
            `joint` gives the tokens of all frames to one attention.
        tubelet: Frames a token of `joint` spans.
        dropout: Before the head.
        head: `batch_norm` normalises features over the batch, without weights of its own, before the linear head (MAE's and
            AdaptFormer's way).
        norm: Of a VideoMAE file of pretraining, whose last norm stands before the mean over tokens: `fresh` leaves it out
            and trains a new one behind the mean with the head, as VideoMAE and AdaptFormer do; `file` puts it there, frozen.
    """


class VideoFlags(Choice):
    """`--video.attention joint`: how a model runs on clips; has no effect on pictures."""

    named, brief = False, True

    @classmethod
    def accepts(cls, name: str) -> Callable:
        return options
