"""Tiny pictures and data sets for the tests."""

import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image


def noise(height: int = 12, width: int = 16, seed: int = 0) -> Image.Image:
    """A smooth picture, so that JPEG keeps it."""
    coarse = np.random.default_rng(seed).integers(0, 256, (3, 4, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def picture(path: Path, seed: int = 0, height: int = 12, width: int = 16) -> Path:
    """Writes a picture, its folders included."""
    path.parent.mkdir(parents=True, exist_ok=True)
    noise(height, width, seed).save(path)
    return path


def class_folders(folder: Path, counts: dict[str, int]) -> Path:
    """A folder with a folder per class; no two pictures are the same."""
    for name, count in counts.items():
        for i in range(count):
            picture(folder / name / f"{i}.jpg", seed=zlib.crc32(f"{folder.name}/{name}/{i}".encode()))
    return folder


def listed_pictures(folder: Path, list_name: str, inside: str, labels: Sequence[int]) -> None:
    """Pictures `inside/000000.jpg` … and the list `list_name` of them with their labels."""
    lines = []
    for i, label in enumerate(labels):
        name = f"{inside}/{i:06d}.jpg"
        picture(folder / name, seed=i)
        lines.append(f"{name} {label}\n")
    (folder / list_name).parent.mkdir(parents=True, exist_ok=True)
    (folder / list_name).write_text("".join(lines), encoding="utf-8")


def vtab_task(folder: Path, classes: int = 4, sizes: tuple[int, int, int] = (8, 4, 6)) -> Path:
    """A VTAB-1k task's folder."""
    for split, size in zip(("train800", "val200", "test"), sizes, strict=True):
        listed_pictures(folder, f"{split}.txt", f"images/{split}", [i % classes for i in range(size)])
    return folder
