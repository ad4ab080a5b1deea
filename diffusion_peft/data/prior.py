"""Prior pictures: what the base draws for the class's name, which DreamBooth trains on so that the class stays itself."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from PIL import Image

from diffusion_peft.base.bases import Base
from diffusion_peft.data.cache import fingerprint, key_of
from diffusion_peft.data.pictures import Picture, open_pictures
from diffusion_peft.drawing.draw import Drawing, draw, embed, embed_negative
from peft_core.errors import PeftError
from peft_core.files import cache_root
from peft_core.jobs.runs.process import is_first_process


def prior_pictures(
    base: Base,
    prompt: str,
    given: str | None,
    count: int,
    how: Drawing,
    seed: int,
    device: torch.device,
    where: Path | None,
    clip_skip: int = 0,
) -> list[Picture]:
    """`count` pictures of the class: those of the folder `given`, else drawn from the base and kept for the next run.

    Args:
        where: folder to keep them in; the user's cache folder where None.
        clip_skip: as the run that trains on them has it.

    Raises:
        PeftError: the folder holds fewer than asked.
    """
    if given is not None:
        found = open_pictures(given)
        if len(found) < count:
            raise PeftError(
                f"{given} holds {len(found)} prior pictures but --prior_count asks for {count}: lower it, or leave --prior "
                "out to have them drawn from the base."
            )
        return found[:count]
    how = how.of(base)
    marks = [fingerprint(part) for part in (base.part(base.denoiser), base.part("vae"), *base.text_encoders)]
    skipped = (clip_skip,) if clip_skip else ()
    key = key_of("prior", prompt, seed, how.of_a_picture(), base.config("scheduler"), *skipped, *marks)[:24]
    folder = (where or cache_root()) / "prior" / key
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / ".lock"):
        missing = [number for number in range(count) if not (folder / f"{number:05d}.png").is_file()]
        if missing:
            _draw_missing(base, prompt, missing, how, seed, device, folder, clip_skip)
    return open_pictures(str(folder))[:count]


def _draw_missing(
    base: Base, prompt: str, missing: list[int], how: Drawing, seed: int, device: torch.device, folder: Path,
    clip_skip: int,
) -> None:  # fmt: skip
    from rich.console import Console
    from rich.progress import Progress

    def keep(number: int, image: Image.Image) -> None:
        path = folder / f"{missing[number]:05d}.png"
        part = path.with_suffix(".part")
        image.save(part, format="PNG")
        part.replace(path)
        bar.advance(task)

    for encoder in base.text_encoders:
        encoder.to(device)
    wanted, against = embed(base, prompt, clip_skip), embed_negative(base, "", clip_skip)
    prompts: list[Any] = [(wanted, seed * 1_000_003 + number) for number in missing]
    with Progress(console=Console(stderr=True), disable=not (is_first_process() and sys.stderr.isatty())) as bar:
        task = bar.add_task(f"drawing prior pictures of “{prompt}”", total=len(missing))
        draw(base, base.part(base.denoiser).to(device), prompts, against, how, done=keep)
