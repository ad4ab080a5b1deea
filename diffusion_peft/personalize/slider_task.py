"""What training a concept slider does in its own way."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from diffusion_peft.base.bases import Base
from diffusion_peft.data.concepts import Concept
from diffusion_peft.personalize.slider import Slider
from diffusion_peft.personalize.slider_data import prepare_slider
from diffusion_peft.training.samples import Samples
from diffusion_peft.training.tasks import Task

SLIDES = (-2.0, -1.0, 0.0, 1.0, 2.0)


class SliderTask(Task):
    module = Slider

    def samples(self, folder: Path) -> Samples:
        samples = super().samples(folder)
        samples.scales = SLIDES
        return samples

    def prepare(
        self, base: Base, concepts: list[Concept], device: torch.device, trains_text: bool, samples: Samples
    ) -> tuple[Any, dict[str, Any]]:
        return prepare_slider(base, self.settings, device)

    def options(self) -> dict[str, Any]:
        given = self.settings["slider"].options
        chosen = {key: value for key, value in given.items() if key in ("strength", "guidance")}
        return chosen | {"drawing_steps": given.get("steps", 50)}
