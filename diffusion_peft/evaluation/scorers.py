"""Features that pictures and texts are compared by: a ViT's and a CLIP model's, by name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from peft_data.augment import normalise
from peft_data.pictures import Fit
from PIL import Image
from torch import Tensor, nn
from torch.nn.functional import normalize

from peft_core.errors import PeftError
from peft_core.jobs.runs.process import tell

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
    """The scorers asked for; where None, the reference models for drawn pictures, else the protocol's own models, and
    the reference models (this is said) where these cannot be reached.

    Raises:
        PeftError: an unknown name, weights that were asked for and cannot be reached.
    """
    made = []
    for given, usual, make, option in (
        (image, DINO, image_scorer, "--image_features"),
        (clip, CLIP, clip_scorer, "--clip"),
    ):
        try:
            made.append(make(given or (REFERENCE if drawn else usual)))
        except PeftError as error:
            if given:
                raise PeftError(str(error).replace("--backbone", option)) from error
            tell(f"note: {usual} cannot be reached, the shipped reference model scores in its place; it knows drawn "
                 f"pictures alone, so name a model of this machine with {option}")  # fmt: skip
            made.append(make(REFERENCE))
    return made[0], made[1]  # type: ignore[return-value]
