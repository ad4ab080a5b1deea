"""Pairs as examples of training: latents and captions as everywhere, conditions beside them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from diffusion_peft.base.bases import Base
from diffusion_peft.base.texts import check_length
from diffusion_peft.control.data import Pair, open_pairs
from diffusion_peft.control.inputs import Inputs, inputs_for
from diffusion_peft.data.buckets import Crop, fit_to
from diffusion_peft.data.cache import open_cache
from diffusion_peft.data.examples import Example, Examples
from diffusion_peft.data.latents import Captions, encode_captions, encode_pictures
from diffusion_peft.data.pictures import say_if_small
from diffusion_peft.data.prepare import sizes
from peft_core.errors import PeftError
from peft_core.method import Method

SHOWN = 4
HELD_OUT = 20
"""Pairs from which on the shown ones are kept out of training."""


@dataclass
class ConditionedExamples(Examples):
    """Each item's condition, as `Inputs.entry` made it."""

    inputs: Inputs | None = None
    conditions: list[Any] | None = None
    drop: float = 0.0
    """Share of conditions that are left out."""

    def batch(self, rows: Any, chance: torch.Generator) -> dict[str, Any]:
        batch = super().batch(rows, chance)
        dropped = torch.rand(len(rows), generator=chance) < self.drop if self.drop else None
        assert self.inputs is not None and self.conditions is not None
        return batch | {"condition": self.inputs.batch([self.conditions[row] for row in rows], dropped)}


@dataclass(frozen=True)
class Shown:
    """Pairs for the sample grids, their prompts, and their conditions as the control takes them."""

    pairs: list[Pair]
    prompts: list[str]
    conditions: list[Any]


def captions_of(pairs: list[Pair], prompt: str | None, base: Base, data: str) -> list[str]:
    """Raises PeftError: pairs without any words, a prompt of too many tokens."""
    if prompt is not None:
        check_length(base, prompt, "the prompt")
        return [prompt] * len(pairs)
    silent = [pair.picture.name for pair in pairs if not pair.picture.caption]
    if silent:
        raise PeftError(
            f"{len(silent)} of {len(pairs)} pictures of {data} have no caption (the first is {silent[0]}): give "
            "captions/NAME.txt, a column of metadata.jsonl, or one --prompt for all."
        )
    return [str(pair.picture.caption) for pair in pairs]


def prepare_pairs(
    base: Base, method: Method, settings: dict[str, Any], options: dict[str, Any], device: torch.device
) -> tuple[ConditionedExamples, Shown]:
    """The examples of a run, and what its sample grids show: pairs that are not trained on, where there are enough.

    Raises:
        PeftError: what is wrong with pairs or words, before anything is computed.
    """
    data = settings["data"]
    kind, pairs = open_pairs(data, options)
    texts = captions_of(pairs, settings["prompt"], base, data)
    side, buckets = sizes(base, settings)
    if data.startswith("world/"):
        held = open_pairs(data, options, "test")[1][:SHOWN]
        words = captions_of(held, settings["prompt"], base, data)
    else:
        held, words = pairs[-SHOWN:], texts[-SHOWN:]
        if len(pairs) >= HELD_OUT:
            pairs, texts = pairs[:-SHOWN], texts[:-SHOWN]
    say_if_small([pair.picture for pair in pairs], side)
    inputs = inputs_for(method, kind, base, options, open_cache("conditions", settings["cache"]), device)
    flips = (False, True) if settings["flip"] else (False,)
    wanted = [(pair, crop_of(pair, buckets), flip) for pair in pairs for flip in flips]
    conditions = [inputs.entry(*each) for each in wanted]
    square = [(side, side)]
    shown = Shown(held, words, [inputs.entry(pair, crop_of(pair, square)) for pair in held])
    latents = encode_pictures(
        base,
        [(pair.picture, crop, flip) for pair, crop, flip in wanted],
        open_cache("latents", settings["cache"]),
        device,
    )
    captions = Captions()
    numbers = [captions.number(text) for text in texts for _ in flips]
    items = [Example(latent, (number,)) for latent, number in zip(latents, numbers, strict=True)]
    encode_captions(base, captions, open_cache("texts", settings["cache"]), settings["clip_skip"], device)
    examples = ConditionedExamples(items, captions, dropout=settings["caption_dropout"], inputs=inputs,
                                   conditions=conditions, drop=options["drop"])  # fmt: skip
    return examples, shown


def crop_of(pair: Pair, buckets: list[tuple[int, int]]) -> Crop:
    return fit_to(pair.picture.height, pair.picture.width, buckets)
