"""What a slider learns from: three prompts, or folders `low` and `high` with pairs of pictures."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diffusion_peft.base.bases import Base
from diffusion_peft.base.texts import check_length
from diffusion_peft.data.buckets import fit_to
from diffusion_peft.data.cache import open_cache
from diffusion_peft.data.examples import Example, Examples
from diffusion_peft.data.latents import Captions, encode_captions, encode_pictures
from diffusion_peft.data.pictures import open_pictures, say_if_small
from diffusion_peft.data.prepare import SHOWN, resolution
from peft_core.errors import PeftError

ROLES = ("target", "positive", "negative")


@dataclass
class TextPairs:
    """One example an attribute: embeddings of the three prompts with the attribute before them.

    Args:
        numbers: the captions of target, positive and negative, a row an attribute.
        shape: C h w of a latent.
        sizes: what SDXL is told.
    """

    numbers: list[tuple[int, ...]]
    captions: Captions
    shape: tuple[int, int, int]
    sizes: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.numbers)

    def buckets(self) -> list[Tensor]:
        return [torch.arange(len(self))]

    def batch(self, rows: list[int], chance: torch.Generator) -> dict[str, Any]:
        numbers = torch.tensor([self.numbers[row] for row in rows])
        texts = {role: self.captions.take(numbers[:, place]) for place, role in enumerate(ROLES)}
        texts["empty"] = self.captions.take(torch.zeros(len(rows), dtype=torch.long))
        sizes = torch.tensor([self.sizes] * len(rows), dtype=torch.float32)
        return texts | {"shape": torch.zeros(len(rows), *self.shape), "sizes": sizes}


@dataclass
class PicturePairs:
    """Pictures of more (`high`) and of less (`low`), equally many."""

    high: Examples
    low: Examples

    def __len__(self) -> int:
        return len(self.high)

    def buckets(self) -> list[Tensor]:
        return self.high.buckets()

    def batch(self, rows: list[int], chance: torch.Generator) -> dict[str, Any]:
        return {"high": self.high.batch(rows, chance), "low": self.low.batch(rows, chance)}


def prepare_slider(base: Base, settings: dict[str, Any], device: torch.device) -> tuple[Any, dict[str, Any]]:
    """The examples; and the `prompts` to draw and some pictures, `shown`.

    Raises:
        PeftError: prompts or pairs that are missing.
    """
    options = settings["slider"].options
    side, _ = resolution(base, settings["resolution"])
    target = options.get("target") or settings["prompt"] or ""
    check_length(base, target, "the slider's target")
    captions = Captions()
    if settings["data"] is not None:
        found, shown = _picture_pairs(base, settings, captions, captions.number(target), side, device)
    else:
        prompts = [target, options.get("positive"), options.get("negative")]
        if not all(prompts):
            raise PeftError(
                "a slider needs --slider.target, --slider.positive and --slider.negative, or --data with folders low and high."
            )
        words = [f"{word} " for word in options.get("attributes") or ()] or [""]
        for word in words:
            for prompt in prompts:
                check_length(base, f"{word}{prompt}", "a slider's prompt")
        numbers = [tuple(captions.number(f"{word}{prompt}") for prompt in prompts) for word in words]
        latent = side // base.shrinks
        shape = (base.config("unet")["in_channels"], latent, latent)
        found, shown = TextPairs(numbers, captions, shape, (side, side, 0, 0, side, side)), []
    encode_captions(base, captions, open_cache("texts", settings["cache"]), settings["clip_skip"], device)
    return found, {"prompts": [target], "shown": shown}


def _picture_pairs(
    base: Base, settings: dict[str, Any], captions: Captions, number: int, side: int, device: torch.device
) -> tuple[PicturePairs, list[Any]]:
    folder = Path(settings["data"])
    for name in ("low", "high"):
        if not (folder / name).is_dir():
            raise PeftError(
                f"{folder} has no folder {name}: pictures of less of the attribute go to low, of more to high."
            )
    high, low = (open_pictures(str(folder / name)) for name in ("high", "low"))
    if [Path(p.name).stem for p in high] != [Path(p.name).stem for p in low]:
        raise PeftError(f"{folder}/low and {folder}/high must hold pictures of the same names: a pair has one name.")
    say_if_small(high + low, side)
    cache, sets = open_cache("latents", settings["cache"]), []
    for pictures in (high, low):
        wanted = [(picture, fit_to(picture.height, picture.width, [(side, side)]), False) for picture in pictures]
        items = [Example(latent, (number,)) for latent in encode_pictures(base, wanted, cache, device)]
        sets.append(Examples(items, captions))
    pairs = [picture.read() for pair in zip(low, high, strict=True) for picture in pair]
    return PicturePairs(*sets), pairs[:SHOWN]
