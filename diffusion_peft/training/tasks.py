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
from diffusion_peft.evaluation.subjects import naming
from diffusion_peft.training.denoise import Denoiser
from diffusion_peft.training.flow import flow_of
from diffusion_peft.training.noise import Discrete, Process, alphas_of
from diffusion_peft.training.samples import Samples
from peft_core.config_files import find_config
from peft_core.errors import PeftError
from peft_core.files import read_yaml
from peft_core.jobs.runs.process import tell
from peft_core.method import Method


class Task:
    """Denoising of captioned pictures: subjects, styles, new tokens.

    Args:
        settings: `fit`'s options.
        concepts: what is to be learnt.
    """

    module: type[Denoiser] = Denoiser
    unets_alone: str | None = None
    """What it is called where it is for UNets alone."""
    has_sources = False
    """Whether its pictures have sources that they were made of."""
    draws_from = ""
    """What `sample` is given besides a prompt, as it stands in a shell."""

    def __init__(self, settings: dict[str, Any], concepts: list[Concept]) -> None:
        self.settings, self.concepts = settings, concepts

    @property
    def data(self) -> list[str]:
        """What it is trained on, in words."""
        return [concept.data for concept in self.concepts]

    def check_base(self, base: Base) -> None:
        """Raises PeftError: what of the settings this base cannot take."""
        family, settings = base.family, self.settings
        if family.must_have_source(base) and not self.has_sources:
            raise PeftError(
                f"{base.name} draws from a source picture, so it trains on pairs: give --data a folder with source/ and target/."
            )
        if family.denoiser != "unet" and self.unets_alone:
            raise PeftError(f"{self.unets_alone} for UNets, and {base.name} is {family.title}: choose another base.")
        if settings["frames"] > 1 and any(concept.class_prompt is not None for concept in self.concepts):
            raise PeftError("--class_prompt draws single pictures of the class: leave it out, or --frames.")
        if not family.trains_texts:
            tokens = any(concept.placeholder is not None for concept in self.concepts)
            for flag, given in (
                ("text_method", settings["text_method"]),
                ("placeholder", tokens),
                ("clip_skip", settings["clip_skip"]),
            ):
                if given:
                    raise PeftError(
                        f"--{flag} is for Stable Diffusion 1.x, 2.x and XL; the text encoders of {family.title} stay as they "
                        "are: leave it out."
                    )
        self.process(base)
        if family.flows and settings["snr_gamma"]:
            tell(
                f"note: {settings['recipe']}'s snr_gamma is for discrete schedules, and this base is a flow: it goes without"
            )
        self.told(base)

    def process(self, base: Base) -> Process:
        """How pictures are noised.

        Raises:
            PeftError: options of the other kind of process.
        """
        options = self.settings["flow"].options
        if not base.family.flows:
            if options:
                raise PeftError(
                    f"--flow is for bases trained by flow matching, and {base.name} predicts {base.prediction_type}."
                )
            return Discrete(alphas_of(base.config("scheduler")), base.prediction_type, self.settings["snr_gamma"])
        if self.settings["snr_gamma"] not in (0, self._of_recipe("snr_gamma")):
            raise PeftError(
                f"--snr_gamma weighs the noise of a discrete schedule, and {base.name} is a flow: leave it at 0, --flow.weight "
                "weighs flows."
            )
        return flow_of(base.config("scheduler"), base.family.patch(base), options)

    def _of_recipe(self, name: str) -> Any:
        """An option as the recipe has it, which knows nothing of the base."""
        recipe = self.settings.get("recipe")
        return read_yaml(find_config("recipe", recipe, "diffusion")).get(name) if recipe else None

    def told(self, base: Base) -> float | None:
        """The scale of guidance that a distilled base is told.

        Raises:
            PeftError: none is given, or one for a base that takes none.
        """
        given = self.settings["flow"].options.get("guidance")
        if base.family.is_distilled(base) and given is None:
            raise PeftError(
                f"{base.name} is distilled with guidance, so training must tell it a scale: give --flow.guidance 3.5, as "
                "diffusers' scripts do, or 1."
            )
        if given is not None and not base.family.is_distilled(base):
            raise PeftError(f"{base.name} is told no scale of guidance: leave --flow.guidance out.")
        return given

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

    def next_commands(self, run: str, prompt: str) -> list[str]:
        """What may be done with the finished run, `run` and `prompt` as they stand in a shell."""
        words = [naming(concept) for concept in self.concepts]
        more = " --class_name CLASS" if any(own and of_class is None for own, of_class in words) else ""
        return [
            f"diffusion_peft sample --run {run}{self.draws_from} --prompt {prompt} --count 4 --seed 0",
            f"diffusion_peft evaluate --run {run}{more} --count 2",
            f"diffusion_peft export --run {run} --format diffusers",
        ]

    def options(self) -> dict[str, Any]:
        """Arguments of the module besides everybody's."""
        return {}

    def outcome(self, module: Denoiser, samples: Samples) -> tuple[dict[str, Any], list[tuple[str, str]]]:
        """Further results, and sections of the report."""
        return {}, []
