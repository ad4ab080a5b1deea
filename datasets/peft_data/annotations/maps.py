"""A map for each picture, of classes or of numbers: files or tensors, read at a size."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from peft_data.base import Pictures
from peft_data.cache import pool
from peft_data.cache_file import cache_key
from peft_data.errors import DataError
from peft_data.pictures import UNREADABLE


@dataclass(frozen=True, eq=False)
class Maps:
    """The maps of all splits; a picture's label is its row here.

    Args:
        items: files; or maps as they are, `N H W`.
    """

    items: Sequence[Path] | Tensor
    what: ClassVar[str]
    """One is called, for messages."""

    def of_file(self, file: Path) -> np.ndarray:
        """A file's map at its own size, `H W`.

        Raises:
            UNREADABLE: it cannot be read.
            DataError: what is in it is no such map.
        """
        raise NotImplementedError(type(self).__name__)

    def meaning(self) -> Any:
        """What else decides what the files say."""
        raise NotImplementedError(type(self).__name__)

    def read(self, row: int) -> np.ndarray:
        """A map at its own size, `H W`.

        Raises:
            DataError: it cannot be read, or is no such map.
        """
        item = self.items[row]
        if isinstance(item, Tensor):
            return item.numpy()
        try:
            return self.of_file(item)
        except UNREADABLE as error:
            if isinstance(error, DataError):
                raise
            raise DataError(f"the {self.what} {item} cannot be read ({error}): mend or remove it") from error

    def stacked(
        self, read: Callable[[int], np.ndarray], rows: Sequence[int], size: tuple[int, int], workers: int
    ) -> Tensor:
        """What `read` gives of rows, at a size, `N H W`, each pixel the nearest one's."""

        def one(row: int) -> np.ndarray:
            values = read(row)
            if values.shape == tuple(size):
                return values
            return np.asarray(Image.fromarray(values).resize((size[1], size[0]), Image.Resampling.NEAREST))

        with pool(workers) as threads:
            return torch.from_numpy(np.stack(list(threads.map(one, rows))))

    def name(self, row: int) -> str:
        return str(self.items[row]) if not isinstance(self.items, Tensor) else f"number {row}"

    def answers(self, rows: Tensor) -> bytes:
        """What changes with any of these maps (`ClassificationData.answers`)."""
        if isinstance(self.items, Tensor):
            return self.items[rows].numpy().tobytes()
        return str(cache_key(Pictures([self.items[row] for row in rows.tolist()], rows), self.meaning())).encode()
