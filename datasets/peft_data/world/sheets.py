"""Contact sheets of the tasks and of the few-shot sets: `python -m peft_data.world.sheets docs/world`."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from PIL import Image, ImageDraw

from . import GROUPS, SIZE, class_names, draw_task
from .open import SETS, draw_set

ROWS, COLUMNS, GAP, HEADING = 3, 16, 2, 16
Sheet = tuple[str, Image.Image]
"""Heading and pictures."""


def grid_of(columns: Iterable[torch.Tensor]) -> Image.Image:
    """COLUMNS columns of up to ROWS pictures, uint8 n 3 S S each."""
    step = SIZE + GAP
    grid = torch.full((3, ROWS * step, COLUMNS * step), 255, dtype=torch.uint8)
    for column, pictures in enumerate(columns):
        for row, picture in enumerate(pictures[:ROWS]):
            grid[:, row * step : row * step + SIZE, column * step : column * step + SIZE] = picture
    return Image.fromarray(grid.permute(1, 2, 0).contiguous().numpy())


def sheet(task: str) -> Sheet:
    """One task's pictures, sorted by class from left to right."""
    pictures, labels = draw_task(task, "sheet", 400)
    classes = [column * len(class_names(task)) // COLUMNS for column in range(COLUMNS)]
    firsts = [ROWS * classes[:column].count(label) for column, label in enumerate(classes)]
    columns = [pictures[labels == label][first:] for label, first in zip(classes, firsts, strict=True)]
    return f"world/{task}: {len(class_names(task))} classes, sorted from left to right", grid_of(columns)


def open_sheets(task: str) -> Iterator[Sheet]:
    """A few-shot set's base classes, then its new ones, a column each."""
    pictures, labels = draw_set(task, "sheet", ROWS)
    names = SETS[task][0]
    for part, start in (("base", 0), ("new", COLUMNS)):
        columns = [pictures[labels == start + column] for column in range(COLUMNS)]
        yield f"world/open/{task}, {part}: {', '.join(names[start : start + 4])} …", grid_of(columns)


def write(path: Path, sheets: list[Sheet]) -> None:
    """A PNG of 256 colours with one sheet below the other."""
    width, height = sheets[0][1].size
    page = Image.new("RGB", (width, len(sheets) * (height + HEADING)), "white")
    pen = ImageDraw.Draw(page)
    for row, (heading, grid) in enumerate(sheets):
        top = row * (height + HEADING)
        pen.text((2, top + 2), heading, "black")
        page.paste(grid, (0, top + HEADING))
    page.quantize(256).save(path, optimize=True)


def main(out: Path) -> None:
    """One page a group of tasks, and one for the few-shot sets."""
    out.mkdir(parents=True, exist_ok=True)
    for group, tasks in GROUPS.items():
        write(out / f"{group}.png", [sheet(task) for task in tasks])
    write(out / "open.png", [sheet for task in SETS for sheet in open_sheets(task)])


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "docs/world"))
