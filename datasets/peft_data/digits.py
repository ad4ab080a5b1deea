"""Handwritten digits: the 1,797 real pictures, 8 × 8, that scikit-learn bundles."""

from __future__ import annotations

import gzip
import importlib.util
import sys
from pathlib import Path

import torch

from peft_data.base import ClassificationData, Pictures
from peft_data.errors import DataError
from peft_data.splits import stratified

NAMES = {"digits": "1,797 handwritten digits, 8 × 8 pixels, 10 classes; bundled with scikit-learn, needs no download"}
SIZES = (800, 200, 797)


def load(name: str, seed: int) -> ClassificationData:
    """800 + 200 to train and 797 to test, split by class from the seed.

    Grey levels 0 to 16 become 0 to 255, the same in all three channels.
    """
    table = _table()
    grey = (table[:, :64].view(-1, 8, 8).double() * (255 / 16)).round().to(torch.uint8)
    images = grey[:, None].expand(-1, 3, -1, -1).contiguous()
    whole = Pictures(images, table[:, 64].long(), split="digits")
    train, val, test = (whole.subset(part) for part in stratified(whole.labels, SIZES, seed))
    return ClassificationData(name, tuple(map(str, range(10))), train, val, test, recipe="digits")


def _table() -> torch.Tensor:
    """N 65: grey levels from 0 to 16, row by row, and the digit. Read from scikit-learn's own file, because importing
    scikit-learn takes longer than a short training.

    Raises:
        DataError: scikit-learn is not installed.
    """
    spec = importlib.util.find_spec("sklearn")
    if spec is None or spec.origin is None:
        raise DataError("the digits are bundled with scikit-learn, which is not installed: pip install scikit-learn")
    with gzip.open(Path(spec.origin).parent / "datasets" / "data" / "digits.csv.gz", "rt", encoding="ascii") as file:
        return torch.tensor([[int(float(cell)) for cell in line.split(",")] for line in file])


def write_pictures(folder: Path, count: int = 8) -> None:
    """The first test pictures as PNG files, their class in their names: something to try `predict` on."""
    from PIL import Image

    test = load("digits", 0).test
    folder.mkdir(parents=True, exist_ok=True)
    for index in range(count):
        picture = Image.fromarray(test.items[index].permute(1, 2, 0).numpy())
        picture.save(folder / f"digit_{index}_is_{int(test.labels[index])}.png")


def write_folders(folder: Path, count: int) -> None:
    """The first pictures of each digit as PNG files in class folders: something to try `fit --data FOLDER` on."""
    from PIL import Image

    table = _table()
    names = "zero one two three four five six seven eight nine".split()
    for digit, name in enumerate(names):
        (folder / name).mkdir(parents=True, exist_ok=True)
        for number, row in enumerate(table[table[:, 64] == digit][:count, :64]):
            grey = (row.view(8, 8).double() * (255 / 16)).round().to(torch.uint8)
            Image.fromarray(grey.numpy()).save(folder / name / f"{number:03d}.png")


if __name__ == "__main__":
    if len(sys.argv) > 2:
        write_folders(Path(sys.argv[1]), int(sys.argv[2]))
    else:
        write_pictures(Path(sys.argv[1]))
