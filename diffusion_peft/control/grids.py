"""Sample grids under conditions: a row is condition, samples, and the real picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw
from torch import nn

from diffusion_peft.control.data import Grounded, Pair
from diffusion_peft.control.examples import Shown
from diffusion_peft.control.inputs import Inputs, as_picture
from diffusion_peft.control.use import Conditions
from diffusion_peft.drawing.draw import passes_of
from diffusion_peft.training.samples import Samples


class ControlSamples(Samples):
    """`Samples` whose prompts have conditions."""

    def __init__(self, folder: Path, settings: dict[str, Any], until: float) -> None:
        super().__init__(folder, settings)
        self.until = until
        self.shown: Shown | None = None
        self.inputs: Inputs | None = None

    def show(self, shown: Shown, inputs: Inputs | None) -> None:
        self.shown, self.inputs = shown, inputs

    def before(self, unet: nn.Module) -> Conditions:
        assert self.shown is not None and self.inputs is not None
        entries = [entry for entry in self.shown.conditions[: len(self.texts)] for _ in range(self.count)]
        assert self.base is not None
        return Conditions(unet, [(None, self.inputs, entries)], self.until, passes_of(self.base, self.how))

    def framed(self, rows: Sequence[Sequence[Image.Image]]) -> list[list[tuple[Image.Image, str]]]:
        assert self.shown is not None
        found = []
        for pair, row in zip(self.shown.pairs, super().framed(rows), strict=False):
            found.append([(as_shown(pair, row[0][0].size), "condition"), *row, (pair.picture.read(), "real")])
        return found


def as_shown(pair: Pair, size: tuple[int, int]) -> Image.Image:
    """A condition to look at; boxes are drawn with their phrases' colours left out."""
    if not isinstance(pair.condition, Grounded):
        source = pair.condition if pair.condition is not None else pair.picture.source
        kind = "picture" if pair.condition is None else "given"
        return as_picture(Pair(pair.picture, source), kind).resize(size)
    sheet = Image.new("RGB", size)
    pen = ImageDraw.Draw(sheet)
    for number, box in enumerate(pair.condition.boxes):
        corners = [side * length for side, length in zip(box, (*size, *size), strict=True)]
        pen.rectangle(corners, outline=f"hsl({137 * number % 360}, 90%, 60%)", width=max(1, size[0] // 64))
    return sheet
