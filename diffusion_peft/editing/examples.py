"""Pairs as examples of training: latents and instructions as everywhere, the sources' latents beside them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from diffusion_peft.base.bases import Base
from diffusion_peft.base.prompt_syntax import notes_on
from diffusion_peft.base.texts import check_length, ids_of
from diffusion_peft.data.buckets import fit_to
from diffusion_peft.data.cache import open_cache
from diffusion_peft.data.examples import Example, Examples
from diffusion_peft.data.latents import Captions, encode_captions, encode_pictures
from diffusion_peft.data.pictures import say_if_small
from diffusion_peft.data.prepare import sizes, views
from diffusion_peft.data.shares import set_aside, share_of
from diffusion_peft.editing.data import Edit, open_edits
from peft_core.jobs.runs.process import tell

SHOWN = 4


@dataclass
class Edits(Examples):
    """Each item's source, as the denoiser is told it, C h w."""

    sources: list[Tensor] = field(default_factory=list)
    drop: float = 0.0
    """p: with a number u of each picture, its instruction is left out where u < 2 p and its source where p ≤ u < 3 p."""

    def add(self, item: Example, source: Tensor) -> None:
        self.items.append(item)
        self.sources.append(source)

    def batch(self, rows: Sequence[int], chance: torch.Generator) -> dict[str, Any]:
        batch = super().batch(rows, chance)
        batch["source"] = torch.stack([self.sources[row] for row in rows])
        if not self.drop:
            return batch
        u, p = torch.rand(len(rows), generator=chance), self.drop
        for name, empty in self.captions.take(torch.zeros(len(rows), dtype=torch.long)).items():
            batch[name] = torch.where(_beside(u < 2 * p, empty), empty, batch[name])
        batch["source"] = batch["source"].masked_fill(_beside((u >= p) & (u < 3 * p), batch["source"]), 0)
        return batch


def _beside(which: Tensor, values: Tensor) -> Tensor:
    return which.view(-1, *[1] * (values.dim() - 1))


@dataclass(frozen=True)
class Shown:
    """Pairs for the sample grids, and the latents of their sources."""

    edits: list[Edit]
    sources: list[Tensor]


def prepare_edits(
    base: Base, settings: dict[str, Any], options: dict[str, Any], drop: float, device: torch.device, trains_text: bool
) -> tuple[Edits, dict[str, Any], Shown]:
    """The examples of a run, its `held_out` ones, and what its sample grids show: of held-out pairs where there are any.

    Raises:
        PeftError: what is wrong with pairs or words, before anything is computed.
    """
    edits = open_edits(settings["data"], options, settings["prompt"])
    share = share_of(settings["val"])
    apart = set_aside(len(edits), share, settings["seed"], settings["data"])
    if settings["val"] is not None and share is None:
        others = open_edits(settings["val"], options, settings["prompt"])
        apart = set(range(len(edits), len(edits) + len(others)))
        edits += others
    side, buckets = sizes(base, settings)
    say_if_small([edit.target for edit in edits], side)
    for text in dict.fromkeys(str(edit.target.caption) for edit in edits):
        check_length(base, settings["caption_prefix"] + text, f'the instruction "{text[:60]}"')
        for note in notes_on([text]):
            tell(f"note: {note}")

    captions, latents = Captions(), open_cache("latents", settings["cache"])
    found = Edits([], captions, dropout=settings["caption_dropout"], drop=drop)
    held_out = Edits([], captions)
    flips = views(len(edits), settings["flip"], apart)
    crops = [fit_to(edit.target.height, edit.target.width, buckets) for edit in edits]
    own = [fit_to(edit.source.height, edit.source.width, [c.size]) for edit, c in zip(edits, crops, strict=True)]
    targets = encode_pictures(base, [(edits[row].target, crops[row], flip) for row, flip in flips], latents, device)
    sources = encode_pictures(base, [(edits[row].source, own[row], flip) for row, flip in flips], latents, device)
    for (row, _), target, source in zip(flips, targets, sources, strict=True):
        number = captions.number(settings["caption_prefix"] + str(edits[row].target.caption))
        into = held_out if row in apart else found
        into.add(Example(target, (number,)), base.family.source(base, source.mean))
    seen = [edits[row] for row in sorted(apart)][:SHOWN] or edits[-SHOWN:]
    square = [(edit.source, fit_to(edit.source.height, edit.source.width, [(side, side)]), False) for edit in seen]
    shown = [base.family.source(base, each.mean) for each in encode_pictures(base, square, latents, device)]
    if trains_text:
        captions.ids = ids_of(base, captions.texts)
    else:
        encode_captions(base, captions, open_cache("texts", settings["cache"]), settings["clip_skip"], device)
    about = {
        "prompts": [settings["caption_prefix"] + str(edit.target.caption) for edit in seen],
        "shown": [side.read() for edit in seen for side in (edit.source, edit.target)],
        "held_out": held_out if len(held_out) else None,
    }
    return found, about, Shown(seen, shown)
