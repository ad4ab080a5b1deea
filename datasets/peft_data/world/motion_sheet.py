"""A contact sheet of the drawn clips: `python -m peft_data.world.motion_sheet docs/world/motion.png`."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from PIL import Image, ImageDraw

from peft_data.video.clips import strip

from . import SIZE
from .motion import ABOUT, CLASSES, draw_clips

COLUMNS, GAP, HEADING, NAME = 2, 3, 18, 12


def sheet(task: str) -> Image.Image:
    """A clip of each class, every second frame from left to right, its class above it."""
    clips, labels = draw_clips(task, "sheet", 24, 0, SIZE)
    width, height = 8 * (SIZE + 2), SIZE + NAME + GAP
    rows = -(-len(CLASSES[task]) // COLUMNS)
    page = Image.new("RGB", (COLUMNS * (width + GAP), HEADING + rows * height), "white")
    pen = ImageDraw.Draw(page)
    pen.text((2, 3), f"world/motion/{task}: {ABOUT[task]}", "black")
    for label, name in enumerate(CLASSES[task]):
        first = int((labels == label).nonzero()[0])
        left, top = label % COLUMNS * (width + GAP), HEADING + label // COLUMNS * height
        pen.text((left + 2, top), name, "dimgrey")
        page.paste(strip(clips[first, torch.arange(0, len(clips[first]), 2)]), (left, top + NAME))
    return page


def main(out: Path) -> None:
    """Writes one PNG of 256 colours."""
    sheets = [sheet(task) for task in CLASSES]
    page = Image.new("RGB", (sheets[0].width, sum(each.height for each in sheets)), "white")
    top = 0
    for each in sheets:
        page.paste(each, (0, top))
        top += each.height
    out.parent.mkdir(parents=True, exist_ok=True)
    page.quantize(256).save(out, optimize=True)


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "docs/world/motion.png"))
