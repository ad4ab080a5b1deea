"""Controls of finished runs in use: which conditions they take, and giving them before pictures are drawn."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft_data.pictures import UNREADABLE, read_picture
from PIL import Image
from torch import nn

from diffusion_peft.base.bases import Base
from diffusion_peft.control.branch import controls_of, set_condition
from diffusion_peft.control.conditions import compute
from diffusion_peft.control.data import Grounded, Pair, read_boxes
from diffusion_peft.control.inputs import Inputs, inputs_for, tower_of
from diffusion_peft.control.options import ControlOptions, is_control
from diffusion_peft.data.buckets import Size, fit_to
from diffusion_peft.data.cache import Cache
from diffusion_peft.data.pictures import Picture
from diffusion_peft.drawing.draw import Chunk, Drawing, passes_of
from peft_core.attach import pick
from peft_core.errors import PeftError

Given = Image.Image | Grounded


@dataclass(frozen=True)
class Use:
    """A control on a base's UNet.

    Args:
        name: of its adaptation there. kind: of its condition. inputs: what it takes.
        until: share of the denoising steps in which it acts.
    """

    name: str
    kind: str
    inputs: Inputs
    until: float


def uses_of(base: Base, config: dict[str, Any], prefix: str) -> list[Use]:
    """The control that a run with this config put on the base's UNet under names that begin so; none of other runs."""
    if not is_control(config):
        return []
    options = ControlOptions("", config.get("control") or {}).all()
    options["image_encoder"] = tower_of(options, str(config["data"]))
    kind = options["condition"] or str(config["data"]).split("/")[2]
    unet = base.part(base.denoiser)
    found = []
    for name, _ in controls_of(unet):
        if name.startswith(prefix):
            (adaptation,) = pick(unet, name)
            inputs = inputs_for(adaptation.method, kind, base, options, Cache("conditions", None), torch.device("cpu"))
            found.append(Use(name, kind, inputs, options["until"]))
    return found


class Conditions:
    """Gives a UNet the condition of each picture before a batch of them is drawn.

    Args:
        entries: one a picture, by control: (adaptation's name or None, inputs, entries).
        until: share of the denoising steps in which the controls act.
        steps: calls of the denoiser a picture (`passes_of`).
    """

    def __init__(
        self, unet: nn.Module, entries: Sequence[tuple[str | None, Inputs, Sequence[Any]]], until: float, steps: int
    ) -> None:
        self.unet, self.entries, self.calls = unet, entries, int(until * steps) if until < 1 else None

    def __call__(self, chunk: Chunk) -> None:
        """Gives the conditions of these pictures; of none, at the end, turns the controls off."""
        device = next(self.unet.parameters()).device
        for name, inputs, entries in self.entries:
            if not len(chunk):
                set_condition(self.unet, None, name)
                continue
            batch = inputs.batch([entries[number] for number in chunk])
            set_condition(self.unet, {k: v.to(device) for k, v in batch.items()}, name, self.calls)


def read_conditions(paths: Sequence[str], uses: Sequence[Use], computed: bool = False) -> list[Given]:
    """The conditions in files, one for each control in their order.

    Args:
        computed: the files are pictures, from which the conditions are computed.

    Raises:
        PeftError: another number of files than of controls, or one that cannot be read.
    """
    kinds = [use.kind for use in uses]
    if len(paths) != len(uses):
        what = "no condition" if not paths else f"{len(paths)} conditions"
        raise PeftError(
            f"these runs draw under {' and '.join(kinds)}, and {what} came: give --condition a file for each."
        )
    found: list[Given] = []
    for path, kind in zip(paths, kinds, strict=True):
        file = Path(path).expanduser()
        if not file.is_file():
            raise PeftError(f"there is no condition {file}: give a picture, or for boxes a .json file.")
        if kind == "box":
            found.append(read_boxes(file))
            continue
        try:
            picture = read_picture(file)
        except UNREADABLE as error:
            raise PeftError(f"the condition {file} cannot be read as a picture ({error}).") from error
        found.append(compute(kind, picture) if computed else picture)
    return found


def giving(
    base: Base,
    uses: Sequence[Use],
    given: Sequence[Sequence[Given]],
    size: Size,
    how: Drawing,
    until: float | None = None,
) -> Callable[[Chunk], object]:
    """What `draw` calls before each batch.

    Args:
        given: for each control, a condition for each picture.
        size: height and width of the pictures in pixels.
        until: share of the denoising steps in which the controls act; each run's own where None.

    Raises:
        PeftError: a condition of another shape than the pictures.
    """
    sets = []
    for use, conditions in zip(uses, given, strict=True):
        known: dict[int, Any] = {}
        entries = []
        for condition in conditions:
            if id(condition) not in known:
                known[id(condition)] = use.inputs.entry(_pair(condition, size, use.kind), fit_to(*size, [size]))
            entries.append(known[id(condition)])
        share = use.until if until is None else until
        sets.append(
            Conditions(base.part(base.denoiser), [(use.name, use.inputs, entries)], share, passes_of(base, how))
        )

    def before(chunk: Chunk) -> None:
        for each in sets:
            each(chunk)

    return before


def _pair(condition: Given, size: Size, kind: str) -> Pair:
    height, width = size
    if isinstance(condition, Image.Image) and kind != "picture":
        if abs(condition.width * height - condition.height * width) > max(size):
            raise PeftError(
                f"the condition is {condition.width} × {condition.height} pixels, and pictures are drawn {width} × {height}: "
                "give --width and --height of the same shape."
            )
    blank = Image.new("RGB", (width, height))
    return Pair(Picture(blank, None, "condition", height, width), condition)
