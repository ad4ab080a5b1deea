"""`--slider.positive "a large toy" …`: what a concept slider is to move."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

from peft_core.jobs.cli.options import Choice
from peft_core.values import Range


def slider(
    positive: str | None = None,
    negative: str | None = None,
    target: str | None = None,
    attributes: list[str] | None = None,
    strength: float = 4.0,
    guidance: float = 3.0,
    steps: Annotated[int, Range(2, 1000)] = 50,
) -> None:
    """Options of a slider.

    Args:
        positive: Prompt of the attribute at scales above 0; with picture pairs it is not needed.
        negative: Prompt of its opposite.
        target: What the slider is to act on.
        attributes: What must not change with it, put before all prompts in turn, e.g. red blue.
        strength: How far a scale of 1 moves.
        guidance: Of the pictures that are half drawn to train on.
        steps: Denoising steps that such a picture would have.
    """


class SliderOptions(Choice):
    """`--slider.positive "a large toy" --slider.negative "a small toy" --slider.target "a toy"`."""

    named, complete, brief = False, False, True

    @classmethod
    def accepts(cls, name: str) -> Callable:
        return slider
