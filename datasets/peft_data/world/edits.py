"""Pairs of source and target for editing: a captioned picture, the same with its thing in another colour, and what was done."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from peft_data.errors import DataError, nearest

from .captioned import COLOURS, LABELS, SHAPES, draw_scenes
from .draw import Draw, apart
from .render import render

NAMES = {"world/edit/colour": "drawn pictures, the same with their thing in another colour, and words that say so"}
COUNTS = {"train": 1000, "test": 100}
BLOCK = 500


@dataclass(frozen=True)
class Edits:
    """N pictures, what became of them (both uint8 N 3 S S), N instructions, and the targets' labels (`captioned.LABELS`)."""

    sources: torch.Tensor
    targets: torch.Tensor
    instructions: tuple[str, ...]
    labels: torch.Tensor


def draw_edits(name: str, count: int, split: str = "train", seed: int = 0, size: int = 64) -> Edits:
    """Pairs of one thing on a ground, "make the star red".

    Args:
        name: `world/edit/colour`.
        count: how many; fewer of them are the first of more.
        split: any word; different splits share no picture.
        seed: another seed gives other pictures.
        size: height and width S in pixels.

    Raises:
        DataError: there is no such set.
    """
    if name not in NAMES:
        raise DataError(f"there is no {name!r} in the drawn world{nearest(name, NAMES)}: {', '.join(NAMES)}")
    column = {key: number for number, key in enumerate(LABELS)}
    table = torch.tensor(list(COLOURS.values()))
    parts = []
    for block in range(-(-count // BLOCK)):
        draw = Draw("edits", split, seed, block)
        kept = slice(0, min(BLOCK, count - block * BLOCK))
        scene, labels = draw_scenes(draw, BLOCK)
        scene = scene.replace(present=scene.present & torch.tensor([True, False]))
        taken, ground = labels[:, column["colour"]], labels[:, column["ground colour"]]
        others = torch.arange(len(COLOURS)).expand(BLOCK, -1)
        free = (others != taken[:, None]) & (others != ground[:, None])
        chosen = (draw.uniform(BLOCK, len(COLOURS)) * free).argmax(1)
        colour, colour2 = scene.colour.clone(), scene.colour2.clone()
        colour[:, 0] = table[chosen]
        colour2[:, 0] = apart(colour[:, 0], colour[:, 0] * 0.5 + 0.5 * (colour[:, 0].mean(1, keepdim=True) < 0.5), 0.3)
        labels = labels.clone()
        labels[:, column["colour"]] = chosen
        labels[:, column["second shape"] :] = -1
        changed = scene.replace(colour=colour, colour2=colour2)
        words = [
            f"make the {SHAPES[shape]} {tuple(COLOURS)[to]}"
            for shape, to in zip(labels[:, column["shape"]].tolist(), chosen.tolist(), strict=True)
        ]
        parts.append((render(scene[kept], size).uint8, render(changed[kept], size).uint8, words[kept], labels[kept]))
    sources, targets, texts, found = zip(*parts, strict=True)
    return Edits(
        torch.cat(sources), torch.cat(targets), tuple(text for part in texts for text in part), torch.cat(found)
    )
