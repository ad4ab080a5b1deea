"""Contact sheets of the tasks: `python -m peft_data.world.sheets docs/world`."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from PIL import Image, ImageDraw

from . import GROUPS, SIZE, class_names, draw_task

ROWS, COLUMNS, GAP, HEADING = 3, 16, 2, 16


def sheet(task: str) -> Image.Image:
    """One task's pictures, sorted by class from left to right."""
    pictures, labels = draw_task(task, "sheet", 400)
    classes = [column * len(class_names(task)) // COLUMNS for column in range(COLUMNS)]
    step = SIZE + GAP
    grid = torch.full((3, ROWS * step, COLUMNS * step), 255, dtype=torch.uint8)
    for column, label in enumerate(classes):
        first = ROWS * classes[:column].count(label)
        for row, picture in enumerate(pictures[labels == label][first : first + ROWS]):
            grid[:, row * step : row * step + SIZE, column * step : column * step + SIZE] = picture
    return Image.fromarray(grid.permute(1, 2, 0).contiguous().numpy())


def main(out: Path) -> None:
    """Writes one PNG of 256 colours a group."""
    out.mkdir(parents=True, exist_ok=True)
    for group, tasks in GROUPS.items():
        sheets = [sheet(task) for task in tasks]
        width, height = sheets[0].size
        page = Image.new("RGB", (width, len(tasks) * (height + HEADING)), "white")
        pen = ImageDraw.Draw(page)
        for row, (task, grid) in enumerate(zip(tasks, sheets, strict=True)):
            top = row * (height + HEADING)
            pen.text(
                (2, top + 2), f"world/{task}: {len(class_names(task))} classes, sorted from left to right", "black"
            )
            page.paste(grid, (0, top + HEADING))
        page.quantize(256).save(out / f"{group}.png", optimize=True)


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "docs/world"))
