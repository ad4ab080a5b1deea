"""Kinds of training: what each prepares, trains and shows in its own way; `job.run` is the same for all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from diffusion_peft.base.bases import Base
from diffusion_peft.data.concepts import Concept
from diffusion_peft.data.prepare import prepare
from diffusion_peft.training.denoise import Denoiser
from diffusion_peft.training.samples import Samples
from peft_core.method import Method


class Task:
    """Denoising of captioned pictures: subjects, styles, new tokens."""

    module: type[Denoiser] = Denoiser

    def __init__(self, settings: dict[str, Any]) -> None:
        self.settings = settings

    def method(self, base: Base) -> Method:
        """The UNet's method, with what the base decides about it."""
        return self.settings["method"].build()

    def samples(self, folder: Path) -> Samples:
        return Samples(folder, self.settings)

    def prepare(
        self, base: Base, concepts: list[Concept], device: torch.device, trains_text: bool, samples: Samples
    ) -> tuple[Any, dict[str, Any]]:
        """The examples, and their `prompts` and some of their pictures, `shown`, to be looked at."""
        return prepare(base, concepts, self.settings, device, trains_text)

    def options(self) -> dict[str, Any]:
        """Arguments of the module besides everybody's."""
        return {}

    def outcome(self, module: Denoiser, samples: Samples) -> tuple[dict[str, Any], list[tuple[str, str]]]:
        """Further results, and sections of the report."""
        return {}, []
