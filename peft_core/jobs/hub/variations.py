"""Variations of pictures by a stock diffusers pipeline: one made for them, or any that goes from image to image."""

from __future__ import annotations

import functools
import importlib
import json
import math
import threading
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from peft_core.errors import PeftError
from peft_core.jobs.hub.reach import in_cache, must_reach
from peft_core.jobs.hub.references import REFERENCE, reference_of

AT_ONCE = 8
"""Pictures that go through the pipeline together."""
INDEX = "model_index.json"
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
"""Of what an image encoder of CLIP takes."""


def check_base(base: str, option: str) -> None:
    """Raises PeftError unless there is such a base: `reference`, a pipeline's folder, or the name of one on the hub."""
    folder = Path(base).expanduser()
    if base == REFERENCE or (folder / INDEX).is_file():
        return
    instead = f"{option} a folder with {INDEX}, or `{REFERENCE}`"
    if base.count("/") != 1 or base.startswith(("./", "../", "/", "~")):
        raise PeftError(
            f'there is no diffusion base "{base}": give {instead}, or the name of one on the hub, owner/model.'
        )
    if not in_cache(base, INDEX):
        must_reach(base, base, instead=instead)


_TURN = threading.Lock()  # a pipeline's scheduler keeps its place in itself


@dataclass(frozen=True)
class Variations:
    """`variations(images, number)`: of uint8 B 3 H W as many, of the same size; a picture's depend on it and the number alone.

    Args:
        base: `reference`, a folder or a hub's name. A pipeline for image variations (lambdalabs/sd-image-variations-diffusers) is
            shown the picture; any other starts from it with noise and no words, if it goes from image to image.
        steps: of the sampler.
        guidance: of a pipeline for image variations.
        strength: of one from image to image: the part of the steps that is taken, 1 is all noise.
    """

    base: str
    steps: int
    guidance: float
    strength: float

    def __call__(self, images: Annotated[Tensor, "B 3 H W"], number: int) -> Annotated[Tensor, "B 3 H W"]:
        with _TURN, torch.no_grad():
            return torch.cat([self._of(few, number) for few in images.split(AT_ONCE)])

    def _of(self, images: Tensor, number: int) -> Tensor:
        device = "cuda" if torch.cuda.is_available() else "cpu"
        pipe = _pipeline(self.base, device)
        chances = [torch.Generator().manual_seed(_seed(image, number)) for image in images.cpu()]
        options: dict[str, Any] = {"num_inference_steps": self.steps, "generator": chances, "output_type": "pt"}
        pixels = images.to(device).float() / 255
        if _shows(pipe):
            side = int(pipe.image_encoder.config.image_size)
            mean, std = (torch.tensor(each, device=device).view(3, 1, 1) for each in (MEAN, STD))
            seen = (_resized(pixels, (side, side)) - mean) / std
            made = pipe(image=seen.to(pipe.image_encoder.dtype), guidance_scale=self.guidance, **options).images
        else:
            sides, options["num_inference_steps"] = _own_sides(pipe, pixels.shape[-2:]), self._enough()
            made = pipe(prompt=[""] * len(images), image=_resized(pixels, sides), strength=self.strength, guidance_scale=1.0,
                        **options).images  # fmt: skip
        made = _resized(made.float(), images.shape[-2:])
        return (made.clamp(0, 1) * 255).round().to(torch.uint8).to(images.device)

    def _enough(self) -> int:
        """Steps of which a part, `strength`, is one at least."""
        return max(self.steps, math.ceil(1 / self.strength))


def _resized(pixels: Tensor, sides: Sequence[int]) -> Tensor:
    if tuple(pixels.shape[-2:]) == tuple(sides):
        return pixels
    return F.interpolate(pixels, size=tuple(sides), mode="bicubic", antialias=True).clamp(0, 1)


def _seed(image: Tensor, number: int) -> int:
    return zlib.crc32(image.contiguous().numpy().tobytes()) * 10_007 + number


def _shows(pipe: Any) -> bool:
    """Whether a pipeline is shown the picture by an image encoder, and has no words."""
    return "image_encoder" in pipe.components and "text_encoder" not in pipe.components


def _own_sides(pipe: Any, sides: Sequence[int]) -> tuple[int, int]:
    """The pipeline's own size, where it says one, else the pictures' cut down to what its latents divide."""
    denoiser = pipe.components.get("unet") or pipe.components.get("transformer")
    side = getattr(denoiser.config, "sample_size", None)
    times = int(getattr(pipe, "vae_scale_factor", 8))
    if isinstance(side, int):
        return side * times, side * times
    height, width = (max(2 * times, int(each) // (2 * times) * 2 * times) for each in sides)
    return height, width


@functools.lru_cache(maxsize=1)
def _pipeline(base: str, device: str) -> Any:
    """The pipeline, without bars and without a checker that blackens pictures."""
    diffusers: Any = importlib.import_module("diffusers")  # exports none of its names to type checkers
    source = Path(base).expanduser()
    try:
        if base == REFERENCE:
            pipe = diffusers.AutoPipelineForImage2Image.from_pipe(reference_of("diffusion_peft").load())
        else:
            place = source if (source / INDEX).is_file() else Path(diffusers.DiffusionPipeline.download(base))
            named = json.loads((place / INDEX).read_text(encoding="utf-8")).get("_class_name", "")
            kind: Any = diffusers.AutoPipelineForImage2Image
            if named == "StableDiffusionImageVariationPipeline":
                kind = diffusers.StableDiffusionImageVariationPipeline
            pipe = kind.from_pretrained(str(place), use_safetensors=True)
    except (OSError, ValueError) as error:
        said = " ".join(str(error).split())[:300]
        raise PeftError(
            f"diffusers cannot make variations of pictures with {base} ({said}): give another base."
        ) from error
    if "safety_checker" in pipe.components:
        pipe.safety_checker = None
    pipe.set_progress_bar_config(disable=True)
    return pipe.to(device)
