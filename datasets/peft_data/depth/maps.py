"""Depth maps: where they lie, what their numbers mean, and data whose pictures have one each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from peft_data.annotations.maps import Maps
from peft_data.base import ClassificationData, Pictures
from peft_data.errors import DataError
from peft_data.pictures import is_picture, open_picture, own_size

_MODES = ("L", "I", "I;16", "I;16L", "I;16B", "I;16N", "F")
"""Pillow's modes of one channel of numbers."""


def is_map(path: Path) -> bool:
    """Whether a file's name is that of a depth map: a picture's, or `.npy`."""
    return is_picture(path) or (path.suffix.lower() == ".npy" and not path.name.startswith("."))


def size_of(path: Path) -> tuple[int, int]:
    """Height and width of a map, from its header.

    Raises:
        UNREADABLE: as far as the header shows.
    """
    if path.suffix.lower() != ".npy":
        return own_size(path)
    height, width = _plane(np.load(path, mmap_mode="r", allow_pickle=False)).shape
    return height, width


def _plane(values: np.ndarray) -> np.ndarray:
    """H W of an array that may have a single channel besides."""
    alone = [axis for axis in (0, -1) if values.ndim == 3 and values.shape[axis] == 1]
    plane = values.squeeze(alone[0]) if alone else values
    if plane.ndim != 2 or plane.dtype.kind not in "iuf":
        raise ValueError(f"is an array {tuple(values.shape)} of {values.dtype}, no plane of numbers")
    return plane


@dataclass(frozen=True, eq=False)
class Depths(Maps):
    """The depth maps of all splits, float32 in the data's unit; 0 where nothing is known.

    Args:
        items: as for `Maps`, tensors in the data's unit.
        scale: how many of a file's numbers make a unit.
    """

    what: ClassVar[str] = "depth map"
    scale: float = 1.0

    def of_file(self, file: Path) -> np.ndarray:
        values = self._numbers(file).astype(np.float64) / self.scale
        return np.where(np.isfinite(values) & (values > 0), values, 0)

    def meaning(self) -> Any:
        return self.scale

    def read(self, row: int) -> np.ndarray:
        return super().read(row).astype(np.float32)

    def _numbers(self, item: Path) -> np.ndarray:
        if item.suffix.lower() == ".npy":
            return _plane(np.load(item, allow_pickle=False))
        with open_picture(item) as image:
            image.load()
            if image.mode not in _MODES:
                raise DataError(
                    f"the depth map {item} is in colours ({image.mode}): save it with one channel of numbers, 16-bit PNG or .npy"
                )
            return np.asarray(image)

    def at(self, rows: Sequence[int], size: tuple[int, int], workers: int = 0) -> Tensor:
        """Maps at a size, float32 `N H W`, each pixel the nearest one's.

        Raises:
            DataError: a map that cannot be read.
        """
        return self.stacked(self.read, rows, size, workers)

    @property
    def whole(self) -> bool:
        """Whether the files hold whole numbers, so that `scale` says how fine they are."""
        return not isinstance(self.items, Tensor) and all(item.suffix.lower() == ".png" for item in self.items)


@dataclass(frozen=True, eq=False)
class DepthData(ClassificationData):
    """Pictures with a depth a pixel: `labels` of a split are rows of `maps`."""

    recipe: str | None = "dense"
    maps: Depths = Depths(())
    task: ClassVar[str] = "depth"

    @property
    def kinds(self) -> str:
        return "a depth a pixel"

    def counts(self, part: Pictures) -> Tensor:
        return torch.tensor([len(part)])

    def answers(self, part: Pictures) -> bytes:
        return self.maps.answers(part.labels)

    def said(self, label: Any) -> str:
        return f"with the depth map {self.maps.name(label)}"

    def check(self) -> None:
        """What can be wrong is in the maps, which are read with the pictures."""
