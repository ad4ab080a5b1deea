"""`diffusion_peft app`: the page of a Stable Diffusion model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from peft_core.errors import PeftError
from peft_core.jobs.app.command import page
from peft_core.jobs.app.parts import CHOSEN, Field, Part, Shown


def use(run: Any, pictures: Sequence[str], given: Mapping[str, Any]) -> Shown:
    from diffusion_peft.drawing.draw import Drawing  # needs diffusers

    prompt, count, seed, steps = ((given[key] or 0) for key in ("prompt", "count", "seed", "steps"))
    if not str(prompt or "").strip():
        raise PeftError("write a prompt first: what is to be drawn.")
    if not 1 <= int(count) <= CHOSEN or not 1 <= int(steps) <= 1000 or not 0 <= int(seed) < 2**32:
        raise PeftError(f"draw 1 to {CHOSEN} pictures, in 1 to 1,000 steps, with a seed of 0 or more.")
    if run.controls:
        raise PeftError("this run draws under a condition: use `diffusion_peft sample --condition`.")
    (row,) = run.sample(prompt, int(count), int(seed), how=Drawing(int(steps), float(given["guidance"] or 0)))
    return Shown(
        [(picture, f"seed {int(seed) + number}") for number, picture in enumerate(row)],
        ["seed", "prompt"],
        [[str(int(seed) + number), str(prompt)] for number in range(len(row))],
    )


PART = Part(
    program="diffusion_peft",
    module="diffusion_peft.commands.main",
    about="A subject, a style or a word taught to a frozen Stable Diffusion model.",
    takes_pictures=False,
    verb="Draw",
    use=use,
    use_fields=(
        Field("prompt", "Prompt", "a sks thing"),
        Field("count", "Pictures", 4, number=True),
        Field("seed", "Seed of the first", 0, number=True),
        Field("steps", "Denoising steps", 20, number=True),
        Field("guidance", "Guidance", 4, number=True, info="about 7.5 on real bases"),
    ),
    fit_fields=(
        Field("data", "Folder of pictures", "world/subjects/2"),
        Field("prompt", "What every picture is called", "a sks thing"),
        Field("method", "Method", "lora", ("lora", "dora", "lokr", "full")),
        Field("base", "Base", "reference", ("reference",), info="a diffusers folder, a hub id, or a .safetensors file"),
        Field("steps", "Steps", 100, number=True),
        Field("lr", "Learning rate", None, number=True, info="empty: the recipe's"),
    ),
)  # fmt: skip

app = page(
    "diffusion",
    PART,
    "draw with a finished run, teach a subject from a folder",
)
