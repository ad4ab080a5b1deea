"""From conditions as they are given to the tensors that a control takes, cached where they are costly."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from peft_data.pictures import read_picture
from PIL import Image
from torch import Tensor

from diffusion_peft.base.bases import Base
from diffusion_peft.control.conditions import compute
from diffusion_peft.control.data import Grounded, Pair
from diffusion_peft.control.grounding import MOST_BOXES, encode_boxes
from diffusion_peft.control.method import ControlMethod
from diffusion_peft.data.buckets import Crop, cut
from diffusion_peft.data.cache import Cache, fingerprint, key_of
from peft_core.errors import PeftError
from peft_core.method import Method

FLAT = "mask", "canny", "scribble", "colour", "pose"
"""Conditions of few colours."""
DRAWN_TOWER, TOWER = "reference", "ViT-H-14/laion2b_s32b_b79k"


def tower_of(control: dict[str, Any], data: str) -> str:
    return control["image_encoder"] or (DRAWN_TOWER if data.startswith("world/") else TOWER)


class Inputs(ABC):
    """What a kind of control makes of conditions: one entry a pair, and batches of entries."""

    @abstractmethod
    def entry(self, pair: Pair, crop: Crop, flip: bool = False) -> Any:
        """A pair's condition at the crop that its picture has, small enough to be kept for all pairs."""

    @abstractmethod
    def batch(self, entries: Sequence[Any], dropped: Tensor | None = None) -> dict[str, Tensor]:
        """A condition for `set_condition`; rows that are `dropped` are as without one."""


class PictureInputs(Inputs):
    """Conditions that are pictures of the same size: `picture` B C H W in [0, 1]."""

    def __init__(self, kind: str, channels: int) -> None:
        if channels not in (1, 3):
            raise PeftError(f"a condition has 1 or 3 channels, not {channels}.")
        self.kind, self.channels = kind, channels

    def entry(self, pair: Pair, crop: Crop, flip: bool = False) -> Tensor:
        values = at_crop(as_picture(pair, self.kind), self.kind, crop, flip)
        if self.channels == 1:
            values = values.mean(0, keepdim=True)
        return ((values + 1) * 127.5).round().to(torch.uint8)

    def batch(self, entries: Sequence[Tensor], dropped: Tensor | None = None) -> dict[str, Tensor]:
        picture = torch.stack(list(entries)).float() / 255
        if dropped is not None:
            picture[dropped] = 0
        return {"picture": picture}


class LatentInputs(Inputs):
    """Conditions that are pictures of the same size, for transformers: `latents` B C h w as the denoiser has them, the mean of
    the VAE's posterior, from which diffusers' scripts draw. Without a condition they are those of a black picture."""

    def __init__(self, kind: str, base: Base, cache: Cache, device: torch.device) -> None:
        self.kind, self.base, self.cache, self.device = kind, base, cache, device
        self.mark = fingerprint(base.part("vae"))
        self.black: dict[tuple[int, ...], Tensor] = {}

    def entry(self, pair: Pair, crop: Crop, flip: bool = False) -> Tensor:
        picture = as_picture(pair, self.kind)
        about = self.mark, self.kind in FLAT
        key = key_of("control", *about, hashlib.sha256(picture.tobytes()).hexdigest(), picture.size, crop, flip)
        known = self.cache.get(key)
        if known is None:
            known = {"latents": self.encoded(at_crop(picture, self.kind, crop, flip))}
            self.cache.put(key, known)
        latents = known["latents"]
        if latents.shape not in self.black:  # while the VAE is there
            self.black[latents.shape] = self.encoded(torch.full((3, *crop.size), -1.0))
        return latents

    @torch.no_grad()
    def encoded(self, pixels: Tensor) -> Tensor:
        mean, _ = self.base.family.encode(self.base.part("vae").to(self.device), pixels[None].to(self.device))
        shift, scale = self.base.family.normal(self.base)
        return (mean[0].float().cpu() - shift) * scale

    def batch(self, entries: Sequence[Tensor], dropped: Tensor | None = None) -> dict[str, Tensor]:
        latents = torch.stack(list(entries))
        if dropped is not None:
            latents[dropped] = self.black[latents.shape[1:]]
        return {"latents": latents}


def at_crop(picture: Image.Image, kind: str, crop: Crop, flip: bool) -> Tensor:
    """C H W in [−1, 1]; what has few colours keeps them."""
    return cut(picture, crop, flip, Image.Resampling.NEAREST if kind in FLAT else Image.Resampling.LANCZOS)


def as_picture(pair: Pair, kind: str) -> Image.Image:
    """A pair's condition as RGB, computed where it is not given."""
    if isinstance(pair.condition, Grounded):
        raise PeftError("this method takes a picture as its condition, and these are boxes: gligen takes boxes.")
    return compute(kind, pair.picture.read()) if pair.condition is None else read_picture(pair.condition)


class FeatureInputs(Inputs):
    """Pictures as prompts: `features` of an open_clip tower, B D pooled or B N D patches, and `null`, those of no picture."""

    def __init__(self, kind: str, spec: str, plus: bool, width: int, cache: Cache, device: torch.device) -> None:
        from diffusion_peft.control.tower import Tower

        self.kind, self.cache, self.tower = kind, cache, Tower(spec, plus, device)
        if self.tower.width != width:
            raise PeftError(
                f"{spec} gives features {self.tower.width} wide, and ip_adapter has --method.width {width}: leave it out."
            )
        self.mark = key_of("tower", fingerprint(self.tower.visual), plus)
        self.none = self.tower.null()

    def entry(self, pair: Pair, crop: Crop, flip: bool = False) -> Tensor:
        picture = as_picture(pair, self.kind)
        key = key_of("features", self.mark, picture.size, hashlib.sha256(picture.tobytes()).hexdigest(), flip)
        known = self.cache.get(key)
        if known is None:
            picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if flip else picture
            known = {"features": self.tower(picture)}
            self.cache.put(key, known)
        return known["features"]

    def batch(self, entries: Sequence[Tensor], dropped: Tensor | None = None) -> dict[str, Tensor]:
        features = torch.stack(list(entries))
        null = self.none.expand_as(features).clone()
        if dropped is not None:
            features = torch.where(dropped.view(-1, *[1] * (features.dim() - 1)), null, features)
        return {"features": features, "null": null}


class BoxInputs(Inputs):
    """Boxes with phrases: `boxes`, `phrases` (the text encoders' pooled outputs), `present`."""

    def __init__(self, base: Base) -> None:
        self.base = base
        self.known: dict[str, Tensor] = {}

    def entry(self, pair: Pair, crop: Crop, flip: bool = False) -> Grounded:
        if not isinstance(pair.condition, Grounded):
            raise PeftError("gligen takes boxes with phrases as its condition (.json files), not pictures.")
        found = pair.condition
        for phrase in found.phrases:
            if phrase not in self.known:
                one = encode_boxes(self.base.text_encoders, self.base.tokenizers, [(0, 0, 1, 1)], [phrase])
                self.known[phrase] = one["phrases"][0, 0]
        return through(found, pair.picture.height, pair.picture.width, crop, flip)

    def batch(self, entries: Sequence[Grounded], dropped: Tensor | None = None) -> dict[str, Tensor]:
        width = len(next(iter(self.known.values()), torch.zeros(1)))
        boxes, present = torch.zeros(len(entries), MOST_BOXES, 4), torch.zeros(len(entries), MOST_BOXES)
        phrases = torch.zeros(len(entries), MOST_BOXES, width)
        for row, found in enumerate(entries):
            if found.boxes:
                boxes[row, : len(found.boxes)] = torch.tensor(found.boxes)
                phrases[row, : len(found.boxes)] = torch.stack([self.known[phrase] for phrase in found.phrases])
                present[row, : len(found.boxes)] = 1
        if dropped is not None:
            present[dropped] = 0
        return {"boxes": boxes, "phrases": phrases, "present": present}


def through(found: Grounded, height: int, width: int, crop: Crop, flip: bool) -> Grounded:
    """Boxes of a picture in its crop; what lies outside is left out."""
    (tall, wide), (top, left), (rows, columns) = crop.resized, crop.corner, crop.size
    kept: list[tuple[tuple[float, ...], str]] = []
    for box, phrase in zip(found.boxes, found.phrases, strict=True):
        x = [min(max((side * wide - left) / columns, 0.0), 1.0) for side in (box[0], box[2])]
        y = [min(max((side * tall - top) / rows, 0.0), 1.0) for side in (box[1], box[3])]
        if flip:
            x = [1 - x[1], 1 - x[0]]
        if x[1] > x[0] and y[1] > y[0]:
            kept.append(((x[0], y[0], x[1], y[1]), phrase))
    return Grounded(tuple(box for box, _ in kept), tuple(phrase for _, phrase in kept))


def inputs_for(
    method: Method, kind: str, base: Base, options: dict[str, Any], cache: Cache, device: torch.device
) -> Inputs:
    """What the method takes of conditions of this kind.

    Raises:
        PeftError: conditions that the method cannot take.
    """
    assert isinstance(method, ControlMethod)
    if (method.takes == "boxes") != (kind == "box"):
        wanted = (
            "box alone" if method.takes == "boxes" else "all others, and box is for methods of boxes such as gligen"
        )
        raise PeftError(f"{method.name} cannot take the condition {kind}: it takes {wanted}.")
    if method.takes == "boxes":
        return BoxInputs(base)
    if method.takes == "features":
        return FeatureInputs(kind, options["image_encoder"], method.plus, method.width, cache, device)  # type: ignore[attr-defined]
    if base.denoiser == "unet":
        return PictureInputs(kind, method.channels)  # type: ignore[attr-defined]
    return LatentInputs(kind, base, cache, device)
