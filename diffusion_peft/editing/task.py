"""What training on pairs of source and target does in its own way."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from diffusion_peft.base.bases import Base
from diffusion_peft.data.concepts import Concept
from diffusion_peft.editing.examples import Shown, prepare_edits
from diffusion_peft.training.samples import Samples
from diffusion_peft.training.tasks import Task
from peft_core.errors import PeftError


class EditTask(Task):
    """Denoising of targets under their sources and instructions.

    InstructPix2Pix (Brooks et al., CVPR 2023) on UNets: a source's latents, their posterior's mode unscaled, stand behind the
    noised ones; text, source and both are dropped. Kontext (Labs et al., 2025) on Flux: a source's tokens stand behind the
    picture's, at the places of another plane, and the loss is of the picture's alone.
    """

    has_sources = True
    draws_from = " --source PICTURE"

    def __init__(self, settings: dict[str, Any], concepts: list[Concept]) -> None:
        super().__init__(settings, concepts)
        self.edit = settings["edit"].all()

    def check_base(self, base: Base) -> None:
        base.take_sources()
        if self.edit["drop"] and not base.family.usual_drop:
            raise PeftError(
                f"--edit.drop is for guidance by the source, which {base.family.title} has not: leave it out "
                "(--caption_dropout leaves instructions out)."
            )
        super().check_base(base)

    def samples(self, folder: Path) -> Samples:
        return EditSamples(folder, self.settings)

    def prepare(
        self, base: Base, device: torch.device, trains_text: bool, samples: Samples
    ) -> tuple[Any, dict[str, Any]]:
        assert isinstance(samples, EditSamples)
        drop = base.family.usual_drop if self.edit["drop"] is None else self.edit["drop"]
        examples, about, samples.shown = prepare_edits(base, self.settings, self.edit, drop, device, trains_text)
        return examples, about

    def next_commands(self, run: str, prompt: str) -> list[str]:
        draw, *_ = super().next_commands(run, prompt)
        return [draw, f"diffusion_peft merge --run {run} --out PIPELINE_FOLDER"]


class EditSamples(Samples):
    """`Samples` made of sources: a row is a source, samples, and the target. Where prompts are given, the sources take turns."""

    shown: Shown

    def _turns(self) -> list[int]:
        return [number % len(self.shown.edits) for number in range(len(self.texts))]

    def sources(self) -> list[Tensor]:
        return [self.shown.sources[turn] for turn in self._turns() for _ in range(self.count)]

    def framed(self, rows: Sequence[Sequence[Image.Image]]) -> list[list[tuple[Image.Image, str]]]:
        found = []
        for turn, row in zip(self._turns(), super().framed(rows), strict=True):
            edit, size = self.shown.edits[turn], row[0][0].size
            found.append(
                [(edit.source.read().resize(size), "source"), *row, (edit.target.read().resize(size), "target")]
            )
        return found
