"""Pictures edited by finished runs and by editing bases."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from peft_data.pictures import UNREADABLE, read_picture
from PIL import Image
from torch import Tensor

from diffusion_peft.base.bases import Base
from diffusion_peft.data.buckets import Size, bucket_step, cut, fit_to, make_buckets
from diffusion_peft.drawing.draw import Drawing, drawing_device
from diffusion_peft.use.run import Run
from peft_core.errors import PeftError


def edited(
    run: Run, sources: Sequence[str], prompts: Sequence[str], count: int, seed: int, negative: str, how: Drawing
) -> list[list[Image.Image]]:
    """A row of `count` pictures for each source and prompt, in the source's shape where `how` says no size.

    Raises:
        PeftError: a base that takes no source, a source that cannot be read, and as `Run.sample`.
    """
    if not run.base.edits:
        raise PeftError(f"{run.base.name} takes no source picture: leave --source out, or give a run on pairs.")
    rows = []
    for picture in [read_source(path) for path in sources]:
        size = size_of(run.base, picture, how)
        latents = source_of(run.base, picture, size)
        sized = replace(how, height=size[0], width=size[1])
        rows += run.sample(prompts, count, seed, negative, sized, source=latents)
    return rows


def read_source(path: str) -> Image.Image:
    """Raises PeftError: no such file, or no picture."""
    file = Path(path).expanduser()
    if not file.is_file():
        raise PeftError(f"there is no source {file}: give a picture.")
    try:
        return read_picture(file)
    except UNREADABLE as error:
        raise PeftError(f"the source {file} cannot be read as a picture ({error}).") from error


def size_of(base: Base, picture: Image.Image, how: Drawing) -> Size:
    """Height and width: those asked for, else of the picture's shape and about the base's resolution."""
    side = base.resolution
    if how.height is not None or how.width is not None:
        return how.height or side, how.width or side
    return fit_to(picture.height, picture.width, make_buckets(side, bucket_step(side, base.least_side))).size


@torch.no_grad()
def source_of(base: Base, picture: Image.Image, size: Size) -> Tensor:
    """A picture's latents C h w as the base's denoiser is told them, cut to this size."""
    device = drawing_device()
    pixels = cut(picture, fit_to(picture.height, picture.width, [size]))
    mean, _ = base.family.encode(base.part("vae").to(device), pixels[None].to(device))
    return base.family.source(base, mean.float())[0]
