"""What training a concept slider does in its own way."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from diffusion_peft.base.bases import Base
from diffusion_peft.personalize.slider import Slider
from diffusion_peft.personalize.slider_data import prepare_slider
from diffusion_peft.training.samples import Samples
from diffusion_peft.training.tasks import Task
from peft_core.attach import pick
from peft_core.errors import PeftError

SLIDES = (-2.0, -1.0, 0.0, 1.0, 2.0)


class SliderTask(Task):
    module = Slider
    unets_alone = "sliders are"

    def samples(self, folder: Path) -> Samples:
        samples = super().samples(folder)
        samples.scales = SLIDES
        return samples

    def prepare(
        self, base: Base, device: torch.device, trains_text: bool, samples: Samples
    ) -> tuple[Any, dict[str, Any]]:
        return prepare_slider(base, self.settings, device)

    @property
    def data(self) -> list[str]:
        return [self.settings["slider"].options.get("positive") or self.settings["data"]]

    def check(self, models: Mapping[str, nn.Module]) -> None:
        if any(adaptation.trained for adaptation in pick(models["unet"], None)):
            name = self.settings["method"].name
            raise PeftError(f"a slider needs a method whose change has a scale, and {name} overwrites weights.")

    def options(self) -> dict[str, Any]:
        given = self.settings["slider"].options
        chosen = {key: value for key, value in given.items() if key in ("strength", "guidance")}
        return chosen | {"drawing_steps": given.get("steps", 50)}
