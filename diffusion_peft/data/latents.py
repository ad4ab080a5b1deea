"""Pictures as latent distributions and captions as embeddings, each computed once and cached."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from diffusion_peft.base.bases import Base
from diffusion_peft.base.prompts import stacked
from diffusion_peft.base.texts import ids_of
from diffusion_peft.data.buckets import Crop
from diffusion_peft.data.cache import Cache, fingerprint, key_of
from diffusion_peft.data.pictures import Picture
from peft_core.jobs.runs.process import tell


@dataclass(frozen=True)
class Latent:
    """One picture at its bucket's size as the VAE's posterior, mean and log-variance C h w, before scaling.

    Args:
        sizes: what SDXL is told: original height and width, top and left of the crop, height and width.
    """

    mean: Tensor
    logvar: Tensor
    sizes: tuple[int, int, int, int, int, int]


@torch.no_grad()
def encode_pictures(
    base: Base, pictures: Sequence[tuple[Picture, Crop, bool]], cache: Cache, device: torch.device | str = "cpu"
) -> list[Latent]:
    """The latents of (picture, crop, flipped).

    One picture at a time: an entry does not depend on its neighbours by one bit, so an interrupted run goes on with the
    same values.
    """
    vae = base.part("vae")
    mark = fingerprint(vae)
    found: list[Latent] = []
    todo = 0
    for picture, crop, flip in pictures:
        key = key_of("latent", mark, picture.digest(), crop, flip)
        entry = cache.get(key)
        if entry is None:
            if not todo and len(pictures) > 20:
                tell(f"encoding {len(pictures)} pictures once")
            todo += 1
            mean, logvar = base.family.encode(vae.to(device), picture.pixels(crop, flip)[None].to(device))
            entry = {"mean": mean[0].float().cpu(), "logvar": logvar[0].float().cpu()}
            cache.put(key, entry)
        found.append(Latent(entry["mean"], entry["logvar"], (picture.height, picture.width, *crop.corner, *crop.size)))
    return found


@dataclass
class Captions:
    """Texts by number, number 0 the empty one: as embeddings where they are fixed, else as token ids.

    Args:
        ids: a tensor N 77 for each text encoder.
        rows: N texts' embeddings, as `Prompt.named` has them; none where a text encoder trains.
    """

    texts: list[str] = field(default_factory=lambda: [""])
    ids: list[Tensor] = field(default_factory=list)
    rows: list[dict[str, Tensor]] = field(default_factory=list)

    def number(self, text: str) -> int:
        """The number of a text, which is added where it is new."""
        if text not in self.texts:
            self.texts.append(text)
        return self.texts.index(text)

    def take(self, numbers: Tensor) -> dict[str, Tensor]:
        """The batch's entries for captions of these numbers."""
        if not self.rows:
            return {f"ids_{n}": ids[numbers] for n, ids in enumerate(self.ids)}
        return stacked([self.rows[row] for row in numbers.tolist()])


@torch.no_grad()
def encode_captions(
    base: Base, captions: Captions, cache: Cache, clip_skip: int = 0, device: torch.device | str = "cpu"
) -> None:
    """Fills `rows`, one text at a time (see `encode_pictures`)."""
    encoders = base.text_encoders
    mark = key_of(*(fingerprint(encoder) for encoder in encoders))
    ids = ids_of(base, captions.texts) if base.family.trains_texts else []
    captions.ids = ids
    for row, text in enumerate(captions.texts):
        said = [each[row : row + 1].tolist() for each in ids] or [base.index["_class_name"], text]
        key = key_of("text", mark, clip_skip, *said)
        entry = cache.get(key)
        if entry is None:
            prompt = base.family.prompt(base, text, torch.device(device), clip_skip)
            entry = {name: value[0].cpu() for name, value in prompt.named().items()}
            cache.put(key, entry)
        captions.rows.append(entry)
