"""Features that pictures and texts are compared by: a ViT's and a CLIP model's, by name."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from peft_data.augment import normalise
from peft_data.pictures import Fit
from PIL import Image
from torch import Tensor, nn
from torch.nn.functional import normalize

from peft_core.errors import PeftError

REFERENCE = "reference"
DINO, CLIP = "vit_small_patch16_224.dino", "ViT-B-32/openai"
"""What the DreamBooth paper and its successors compare by."""


@dataclass(frozen=True)
class ImageScorer:
    """`features(pictures)`: unit vectors N D of a vision model; `name` is the model's."""

    name: str
    model: nn.Module
    fit: Fit
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def batches(self, pictures: Sequence[Image.Image], size: int = 64) -> list[Tensor]:
        pixels = [torch.from_numpy(self.fit.picture(picture.convert("RGB")).copy()) for picture in pictures]
        device = next(self.model.parameters()).device
        chunks = [torch.stack(pixels[start : start + size]) for start in range(0, len(pixels), size)]
        return [normalise(chunk.to(device), self.mean, self.std) for chunk in chunks]

    def say(self, pixels: Tensor) -> Tensor:
        return self.model(pixels)

    @torch.inference_mode()
    def features(self, pictures: Sequence[Image.Image]) -> Tensor:
        return normalize(torch.cat([self.say(batch).float().cpu() for batch in self.batches(pictures)]), dim=1)


@dataclass(frozen=True)
class ClipScorer(ImageScorer):
    """Of a CLIP model; `texts` gives those of prompts in the same space."""

    tokenizer: Any = None

    def say(self, pixels: Tensor) -> Tensor:
        return self.model.encode_image(pixels)  # type: ignore[operator]

    @torch.inference_mode()
    def texts(self, prompts: Sequence[str]) -> Tensor:
        ids = self.tokenizer(list(prompts)).to(next(self.model.parameters()).device)
        return normalize(self.model.encode_text(ids).float().cpu(), dim=1)  # type: ignore[operator]


def image_scorer(name: str) -> ImageScorer:
    """A timm model's pooled features (DINO's are its class token), by `vision_peft`'s names of backbones."""
    from peft_core.jobs.hub.timm_models import load_backbone

    model, about = load_backbone(name, 0)
    fit = Fit(about.input_size, "crop", about.crop_pct)
    return ImageScorer(name, _ready(model), fit, about.mean, about.std)


def clip_scorer(name: str) -> ClipScorer:
    """By `clip_peft`'s names of backbones."""
    from peft_core.jobs.hub.open_clip_models import load_backbone, picture_fit

    model, tokenizer, about = load_backbone(name)
    return ClipScorer(name, _ready(model), picture_fit(model, about), about.mean, about.std, tokenizer)


def _ready(model: nn.Module) -> nn.Module:
    return model.requires_grad_(False).eval().to("cuda" if torch.cuda.is_available() else "cpu")


def open_scorers(image: str | None, clip: str | None, drawn: bool) -> tuple[ImageScorer, ClipScorer]:
    """The scorers asked for; where None, the reference models for drawn pictures, else the protocol's own models.

    Raises:
        PeftError: an unknown name, weights that cannot be had. The reference models, which know drawn pictures alone, judge
            photographs only where they are asked for by name.
    """
    return (
        _opened(image_scorer, image, DINO, drawn, "--image_features"),  # type: ignore[return-value]
        _opened(clip_scorer, clip, CLIP, drawn, "--clip"),  # type: ignore
    )


@functools.lru_cache(maxsize=2)
def _opened(make: Callable[[str], ImageScorer], given: str | None, usual: str, drawn: bool, option: str) -> ImageScorer:
    try:
        return make(given or (REFERENCE if drawn else usual))
    except PeftError as error:
        why = str(error).replace("--backbone", option)
        if given or drawn:
            raise PeftError(why) from error
        raise PeftError(
            f"these pictures are judged by {usual}, which cannot be had ({why.partition(': ')[0].rstrip('.')}): give {option} a "
            f"model of this machine, or {option} {REFERENCE} for figures of the shipped model, which knows drawn pictures alone."
        ) from error
