"""Pictures that an evaluation draws: each a file, drawn once, named by all that it depends on."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from PIL import Image

from diffusion_peft.base.texts import check_length
from diffusion_peft.data.cache import fingerprint, key_of
from diffusion_peft.drawing.draw import Drawing, png_of
from diffusion_peft.drawing.scaling import can_be_scaled
from diffusion_peft.use.run import Run, combine
from peft_core.files import write_files

Asked = tuple[str, int]
"""A prompt and a seed."""


@dataclass
class Drawer:
    """Draws what is missing of a run's pictures, or of a base's where there is no run.

    Args:
        root: folder of all pictures of an evaluation.
        base: the base's name; the run's own where None.
        run: the run folder.
        label: what its folder of pictures begins with.
        how: the drawing.
        dtype: of the weights.
    """

    root: Path
    base: str | None
    run: Path | None
    label: str
    how: Drawing
    dtype: str = "float32"

    @cached_property
    def loaded(self) -> Run:
        return combine([(str(self.run), 1.0)] if self.run else [], self.base, self.dtype)

    @property
    def has_scale(self) -> bool:
        return can_be_scaled(self.loaded.models.values())

    @cached_property
    def mark(self) -> str:
        """Of the base's weights and the adapter's."""
        parts = [self.loaded.unet, self.loaded.base.part("vae"), *self.loaded.base.text_encoders]
        return key_of(*map(fingerprint, parts), self.loaded.base.config("scheduler"), self.loaded.clip_skip)

    def pictures(self, asked: Sequence[Asked], scale: float = 1.0) -> list[Image.Image]:
        """The pictures of prompts and seeds, with the run's adapter at this scale.

        Raises:
            PeftError: a prompt of too many tokens, an adapter that has no scale.
        """
        key = key_of("drawn", self.mark, self.how.of_a_picture(), self.dtype, scale)[:12]
        folder = self.root / f"{self.label}-{key}"
        files = [folder / file_name(text, seed) for text, seed in asked]
        missing = [place for place, file in enumerate(files) if not file.is_file()]
        if missing:
            self._draw([(asked[place], files[place]) for place in missing], scale)
        return [Image.open(file).convert("RGB") for file in files]

    def conditions(self, asked: Sequence[Asked]) -> Sequence[Sequence[Any]]:
        """For each control of the run, a condition a picture."""
        return ()

    def _draw(self, wanted: Sequence[tuple[Asked, Path]], scale: float) -> None:
        run, asked = self.loaded, [each for each, _ in wanted]
        for text in {text for text, _ in asked}:
            check_length(run.base, text, f'the prompt "{text}"')

        def keep(number: int, image: Image.Image) -> None:
            file = wanted[number][1]
            write_files(file.parent, {file.name: png_of(image)})

        if scale != 1.0:
            run.set_scale(scale)
        try:
            run.draw_each(asked, self.how, self.conditions(asked), done=keep)
        finally:
            if scale != 1.0:
                run.set_scale(1.0)


def file_name(text: str, seed: int) -> str:
    """Readable, and different for every prompt."""
    words = re.sub(r"\W+", "_", text).strip("_")[:60]
    return f"{words}-{hashlib.sha256(text.encode()).hexdigest()[:8]}-{seed}.png"
