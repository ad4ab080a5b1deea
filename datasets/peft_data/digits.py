"""Handwritten digits: the 1,797 real pictures, 8 × 8, that scikit-learn bundles."""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from peft_data.base import ClassificationData, Pictures
from peft_data.splits import stratified

NAMES = {"digits": "1,797 handwritten digits, 8 × 8 pixels, 10 classes; bundled with scikit-learn, needs no download"}
SIZES = (800, 200, 797)


def load(name: str, seed: int) -> ClassificationData:
    """800 + 200 to train and 797 to test, split by class from the seed.

    Grey levels 0 to 16 become 0 to 255, the same in all three channels.
    """
    from sklearn.datasets import load_digits

    digits = load_digits()
    grey = torch.from_numpy(digits.images * (255 / 16)).round().to(torch.uint8)
    images = grey[:, None].expand(-1, 3, -1, -1).contiguous()
    whole = Pictures(images, torch.from_numpy(digits.target).long(), split="digits")
    train, val, test = (whole.subset(part) for part in stratified(whole.labels, SIZES, seed))
    return ClassificationData(name, tuple(map(str, digits.target_names)), train, val, test, recipe="digits")


def write_pictures(folder: Path, count: int = 8) -> None:
    """The first test pictures as PNG files, their class in their names: something to try `predict` on."""
    from PIL import Image

    test = load("digits", 0).test
    folder.mkdir(parents=True, exist_ok=True)
    for index in range(count):
        picture = Image.fromarray(test.items[index].permute(1, 2, 0).numpy())
        picture.save(folder / f"digit_{index}_is_{int(test.labels[index])}.png")


if __name__ == "__main__":
    write_pictures(Path(sys.argv[1]))
