"""`--control.condition canny …`: what a control method's data are and how it trains on them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from diffusion_peft.control.conditions import check_condition
from diffusion_peft.data.concepts import Concept
from diffusion_peft.training.needs import needs_of
from peft_core.errors import PeftError
from peft_core.jobs.cli.options import Choice
from peft_core.values import Share, Whole


def control(
    condition: str | None = None,
    image_column: str | None = None,
    condition_column: str | None = None,
    caption_column: str | None = None,
    boxes_column: str | None = None,
    phrases_column: str | None = None,
    image_encoder: str | None = None,
    drop: Share = 0.0,
    early: bool = False,
    until: Share = 1.0,
    effect_every: Whole = 0,
) -> None:
    """Options of a control.

    Args:
        condition: canny, scribble, mask, depth, normal, pose, colour, box or picture; computed from the pictures where the
            data have none. world/control/<condition> says it itself.
        image_column: Of metadata.jsonl or a Hugging Face data set: the pictures; the usual names by default.
        condition_column: The conditions.
        caption_column: The captions.
        boxes_column: Lists of boxes (left, top, right, bottom in [0, 1]), for gligen.
        phrases_column: Lists of phrases, one a box.
        image_encoder: The open_clip tower of ip_adapter; the reference CLIP for drawn pictures, else ViT-H-14/laion2b_s32b_b79k.
        drop: Share of conditions that are left out, for guidance without them: boxes, and pictures as prompts.
        early: Train on noisy times more often, t = (1 − u³) T, as the T2I-Adapter's authors do.
        until: Share of the denoising steps of a sample in which the control acts (0.3 is suggested for gligen).
        effect_every: Steps between two measurements of how far the branch changes the output; by default 20 a run.
    """


class ControlOptions(Choice):
    """`--control.condition canny --control.condition_column edges`."""

    named, complete, brief = False, False, True

    @classmethod
    def accepts(cls, name: str) -> Callable:
        return control


def is_control(settings: dict[str, Any]) -> bool:
    """Whether a run's method is a control (`settings` as `fit` has them, or a run folder's config)."""
    return "condition" in needs_of(settings["method"])


def check_control(settings: dict[str, Any]) -> list[Concept]:
    """The pairs of a control run as its only concept.

    Raises:
        PeftError: options that a control has no use for.
    """
    name, options = settings["method"].build().name, settings["control"].all()
    for key in ("text_method", "placeholder", "initializer", "class_prompt", "prior"):
        if settings[key] is not None:
            raise PeftError(f"{name} trains a branch of the UNet on pairs: it has no use for --{key}.")
    if settings["data"] is None:
        raise PeftError(
            f"{name} needs --data: world/control/canny, hf/<repo>, or a folder with images/ and conditions/."
        )
    if settings["slider"].options:
        raise PeftError(f"{name} is no slider: leave --slider out, or choose another method.")
    if settings["compile"]:
        raise PeftError(
            f"{name} gives the UNet a condition before each call, which --compile cannot follow: leave it out."
        )
    if options["condition"] is not None:
        check_condition(options["condition"])
    return [Concept(str(settings["data"]), settings["prompt"])]
