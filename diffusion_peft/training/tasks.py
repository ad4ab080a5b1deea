"""Kinds of training: what each prepares, trains and shows in its own way; `job.run` is the same for all."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from diffusion_peft.base.bases import Base
from diffusion_peft.data.concepts import Concept, NewToken, add_tokens
from diffusion_peft.data.prepare import prepare
from diffusion_peft.training.denoise import Denoiser
from diffusion_peft.training.samples import Samples
from peft_core.method import Method


class Task:
    """Denoising of captioned pictures: subjects, styles, new tokens.

    Args:
        settings: `fit`'s options.
        concepts: what is to be learnt.
    """

    module: type[Denoiser] = Denoiser

    def __init__(self, settings: dict[str, Any], concepts: list[Concept]) -> None:
        self.settings, self.concepts = settings, concepts

    @property
    def data(self) -> list[str]:
        """What it is trained on, in words."""
        return [concept.data for concept in self.concepts]

    def method(self, base: Base) -> Method:
        """The UNet's method, with what the base decides about it."""
        return self.settings["method"].build()

    def tokens(self, base: Base) -> list[NewToken]:
        """New tokens, which the base's tokenizers learn now."""
        return add_tokens(base, self.concepts, self.settings["vectors"])

    def samples(self, folder: Path) -> Samples:
        return Samples(folder, self.settings)

    def prepare(
        self, base: Base, device: torch.device, trains_text: bool, samples: Samples
    ) -> tuple[Any, dict[str, Any]]:
        """The examples, and their `prompts` and some of their pictures, `shown`, to be looked at."""
        return prepare(base, self.concepts, self.settings, device, trains_text)

    def check(self, models: Mapping[str, nn.Module]) -> None:
        """Raises PeftError: adapted models, by part, that this task cannot train."""

    def options(self) -> dict[str, Any]:
        """Arguments of the module besides everybody's."""
        return {}

    def outcome(self, module: Denoiser, samples: Samples) -> tuple[dict[str, Any], list[tuple[str, str]]]:
        """Further results, and sections of the report."""
        return {}, []
