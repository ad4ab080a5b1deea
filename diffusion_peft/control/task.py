"""What training a control does in its own way."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from diffusion_peft.base.bases import Base
from diffusion_peft.base.families import of_kind
from diffusion_peft.control.examples import prepare_pairs
from diffusion_peft.control.grids import ControlSamples
from diffusion_peft.control.inputs import tower_of
from diffusion_peft.control.module import Controlled
from diffusion_peft.control.plots import against_steps
from diffusion_peft.data.concepts import Concept
from diffusion_peft.training.denoise import Denoiser
from diffusion_peft.training.samples import Samples
from diffusion_peft.training.tasks import Task
from peft_core.errors import PeftError
from peft_core.jobs.reports import page as report
from peft_core.method import Method


class ControlTask(Task):
    module = Controlled
    draws_from = " --condition FILE"

    def __init__(self, settings: dict[str, Any], concepts: list[Concept]) -> None:
        super().__init__(settings, concepts)
        self.control = settings["control"].all()
        self.control["image_encoder"] = tower_of(self.control, settings["data"])

    def check_base(self, base: Base) -> None:
        method = self.settings["method"].build()
        if not (method.unets if base.denoiser == "unet" else base.kind in method.transformers):
            known = ["UNets"] * method.unets + [of_kind(kind).title for kind in method.transformers]
            raise PeftError(
                f"{method.name} is for {' and for '.join(known)}, and {base.name} is {base.family.title}: choose another base."
            )
        if base.family.flows and self.control["early"]:
            raise PeftError(
                f"--control.early is for the times of a discrete schedule, and {base.name} is a flow: leave it out."
            )
        super().check_base(base)

    def method(self, base: Base) -> Method:
        return fitted(self.settings["method"], base, self.control)

    def samples(self, folder: Path) -> Samples:
        return ControlSamples(folder, self.settings, self.control["until"])

    def prepare(
        self, base: Base, device: torch.device, trains_text: bool, samples: Samples
    ) -> tuple[Any, dict[str, Any]]:
        assert isinstance(samples, ControlSamples)
        examples, shown = prepare_pairs(base, self.method(base), self.settings, self.control, device)
        samples.show(shown, examples.inputs)
        return examples, {"prompts": shown.prompts, "shown": [pair.picture.read() for pair in shown.pairs]}

    def options(self) -> dict[str, Any]:
        return {key: self.control[key] for key in ("early", "effect_every")}

    def outcome(self, module: Denoiser, samples: Samples) -> tuple[dict[str, Any], list[tuple[str, str]]]:
        rows = [row for row in module.history if "change" in row]
        if not rows:
            return {}, []
        named = {"output's change, as a share": "change", "gates or zero convolutions": "open"}
        picture = against_steps({name: [(r["step"], r[key]) for r in rows] for name, key in named.items()}, "effect")
        return {"effect": {"change": rows[-1]["change"], "open": rows[-1]["open"]}}, [
            ("What the branch does", report.figure(picture, "effect of the branch against steps"))
        ]


def fitted(choice: Any, base: Base, control: dict[str, Any]) -> Method:
    """The method with the base's pixels a latent, and the image tower's width, where they are not given."""
    method = choice.build()
    given = dict(choice.options)
    if getattr(method, "shrink", 0) is None:
        given["shrink"] = base.shrinks
    if getattr(method, "width", 0) is None:
        from diffusion_peft.control.tower import Tower

        given["width"] = Tower(control["image_encoder"], given.get("plus", False)).width
    return type(choice)(choice.name, given).build()
