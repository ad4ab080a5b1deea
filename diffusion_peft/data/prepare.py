"""From folders and words to what training takes: pictures as latents, captions as embeddings, prior pictures besides."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from diffusion_peft.base.bases import Base
from diffusion_peft.base.prompt_syntax import notes_on
from diffusion_peft.base.texts import check_length, ids_of
from diffusion_peft.data.buckets import Size, bucket_step, fit_to, make_buckets
from diffusion_peft.data.cache import open_cache
from diffusion_peft.data.concepts import Concept, captioned
from diffusion_peft.data.examples import Example, Examples
from diffusion_peft.data.latents import Captions, encode_captions, encode_pictures
from diffusion_peft.data.masks import ALPHA, BESIDE, OFF
from diffusion_peft.data.pictures import Picture, say_if_small
from diffusion_peft.data.prior import prior_pictures
from diffusion_peft.data.shares import set_aside, share_of
from diffusion_peft.drawing.draw import Drawing
from peft_core.errors import PeftError
from peft_core.jobs.runs.process import tell

SHOWN = 8


def prepare(
    base: Base, concepts: list[Concept], settings: dict[str, Any], device: torch.device, trains_text: bool
) -> tuple[Examples, dict[str, Any]]:
    """The examples of a run; its `prompts` and some of its pictures, `shown`, to be looked at; and those that are `held_out`.

    Raises:
        PeftError: what is wrong with the pictures or the words, before anything is computed.
    """
    side, buckets = sizes(base, settings)
    told = settings["caption_prefix"], settings["frames"]
    found = [captioned(base, concept, *told) for concept in concepts]
    share = share_of(settings["val"])
    apart = [
        set_aside(len(pictures), share, settings["seed"], c.data)
        for (pictures, _), c in zip(found, concepts, strict=True)
    ]
    if settings["val"] is not None and share is None:  # a folder, of the one concept
        own = concepts[0].masks if concepts[0].masks in (ALPHA, OFF) else BESIDE
        found.append(captioned(base, replace(concepts[0], data=settings["val"], masks=own), *told))
        apart.append(set(range(len(found[-1][0]))))
    say_if_small([picture for pictures, _ in found for picture in pictures], side)
    said = [text for _, texts in found for each in texts for text in each]
    for note in notes_on([*said, *(str(concept.class_prompt or "") for concept in concepts)]):
        tell(f"note: {note}")
    captions, latents = Captions(), open_cache("latents", settings["cache"])
    prior: list[list[Picture]] = []
    for concept in concepts:
        if concept.class_prompt is not None:
            check_length(base, concept.class_prompt, "the class prompt")
            prior.append(_prior(base, concept, settings, side, device))
    if prior and len(prior) < len(concepts):
        raise PeftError("some concepts have a class_prompt and others have none: give it to all of them, or to none.")

    examples, held_out = Examples([], captions, dropout=settings["caption_dropout"]), Examples([], captions)
    for number, (pictures, texts) in enumerate(found):
        rows = views(len(pictures), settings["flip"], apart[number])
        crops = [fit_to(picture.height, picture.width, buckets) for picture in pictures]
        encoded = encode_pictures(base, [(pictures[row], crops[row], flip) for row, flip in rows], latents, device)
        for (row, flip), latent in zip(rows, encoded, strict=True):
            size = (latent.mean.shape[-2], latent.mean.shape[-1])
            mask = pictures[row].weights(crops[row], flip, size, settings["mask_outside"])
            example = Example(latent, tuple(map(captions.number, texts[row])), number, mask)
            if row in apart[number]:
                held_out.items.append(example)
            else:
                examples.items += [example] * pictures[row].repeats
    for number, pictures in enumerate(prior):
        square = [(p, fit_to(p.height, p.width, [(side, side)]), False) for p in pictures]
        word = (captions.number(str(concepts[number].class_prompt)),)
        examples.prior.append(
            [Example(latent, word, number) for latent in encode_pictures(base, square, latents, device)]
        )

    if trains_text:
        captions.ids = ids_of(base, captions.texts)
    else:
        encode_captions(base, captions, open_cache("texts", settings["cache"]), settings["clip_skip"], device)
    prompts = list(dict.fromkeys(captions.texts[item.captions[0]] for item in examples.items))[:4]
    shown = [picture.read() for pictures, _ in found for picture in pictures[:SHOWN]][:SHOWN]
    return examples, {"prompts": prompts, "shown": shown, "held_out": held_out if len(held_out) else None}


def resolution(base: Base, wanted: int | None) -> tuple[int, int]:
    """The side of the square bucket, and what sides must be multiples of.

    Raises:
        PeftError: a resolution that is no such multiple.
    """
    least = base.least_side
    side = base.resolution if wanted is None else wanted
    if side < least or side % least:
        near = max(1, round(side / least)) * least
        raise PeftError(
            f"--resolution {side} does not fit {base.name}, whose sides are multiples of {least}: try {near}."
        )
    return side, least


def sizes(base: Base, settings: dict[str, Any]) -> tuple[int, list[Size]]:
    """The side of the square bucket, and the buckets.

    Raises:
        PeftError: as `resolution`.
    """
    side, least = resolution(base, settings["resolution"])
    return side, make_buckets(side, bucket_step(side, least)) if settings["buckets"] else [(side, side)]


def views(count: int, flips: bool, apart: set[int]) -> list[tuple[int, bool]]:
    """(row, mirrored) of so many pictures; those that are held `apart` are not mirrored."""
    both = [(row, flip) for row in range(count) for flip in (False, True)[: 1 + flips]]
    return [(row, flip) for row, flip in both if not (flip and row in apart)]


def _prior(base: Base, concept: Concept, settings: dict[str, Any], side: int, device: torch.device) -> list[Picture]:
    how = Drawing(settings["sample_steps"], settings["guidance"], side, side)
    where = None if settings["cache"] in ("auto", "off") else Path(settings["cache"])
    prompt, count = str(concept.class_prompt), settings["prior_count"]
    skip = settings["clip_skip"]
    return prior_pictures(base, prompt, concept.prior, count, how, settings["seed"], device, where, skip)
