"""Decodes a split once, to uint8 pictures of one size: kept in memory when they fit, else mapped from a file."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError

from peft_data import cache_file
from peft_data.augment import augmentation
from peft_data.base import Items, Pictures
from peft_data.chance import generator_of
from peft_data.errors import DataError, listing
from peft_data.pictures import UNREADABLE, Fit, read_picture

Progress = Callable[[int, int], None]
CHUNK = 64
MOST_WORKERS = 256


class Decoded:
    """Pictures with labels, of which some could not be read."""

    labels: torch.Tensor
    skipped: tuple[tuple[str, str], ...]

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def left_out(self) -> dict[str, str]:
        """Pictures that could not be read and are left out: name and reason."""
        return dict(self.skipped)


@dataclass(frozen=True, eq=False)
class DecodedPictures(Decoded):
    """N pictures that are ready to be indexed.

    Args:
        images: uint8 `N 3 H W`, in memory or mapped from a file.
        labels: int64 `N`.
        names: N names, as `Pictures.name` gives them.
        skipped: the pictures that could not be read and are left out: name and reason.
    """

    images: torch.Tensor
    labels: torch.Tensor
    names: tuple[str, ...]
    skipped: tuple[tuple[str, str], ...] = ()

    def remaining(self, augment: str) -> str:
        """The augmentation that is left to be done to batches of these pictures: all of it."""
        return augment

    def whole(self, rows: Sequence[int]) -> torch.Tensor:
        """Pictures as the model is tested on them, uint8 `B 3 H W`."""
        return self.images[list(rows)]

    def augmented(self, rows: Sequence[int], augment: str, *numbers: int) -> torch.Tensor:
        """Pictures after an augmentation, uint8 `B 3 H W`, drawn from (numbers, first row)."""
        return augmentation(augment)(self.whole(rows), generator_of(*numbers, rows[0]))

    def digest(self) -> str:
        """A hash of the pictures' bytes."""
        digest = hashlib.sha256(str(tuple(self.images.shape)).encode())
        for start in range(0, len(self.images), 256):
            digest.update(self.images[start : start + 256].cpu().contiguous().numpy().data)
        return digest.hexdigest()

    def preview(self, row: int) -> Image.Image:
        """A picture as the model sees it, to be looked at."""
        return Image.fromarray(self.images[row].permute(1, 2, 0).contiguous().cpu().numpy())


def decoded(images: torch.Tensor) -> DecodedPictures:
    """Pictures that have no labels and no names, uint8 `N 3 H W`."""
    return DecodedPictures(images, torch.zeros(len(images), dtype=torch.int64), ())


def decode(
    pictures: Pictures,
    size: int | tuple[int, int],
    mode: Literal["squash", "crop"] = "squash",
    interpolation: str = "bicubic",
    on_bad_image: Literal["raise", "skip"] = "raise",
    cache_dir: str | os.PathLike | None = None,
    workers: int = 0,
    *,
    crop_pct: float = 0.875,
    ram_limit: int = 2 << 30,
    progress: Progress | None = None,
) -> DecodedPictures:
    """Decodes every picture, brings it to `size` exactly as Pillow does, and keeps it as uint8.

    Every picture is read, so unreadable ones are found here, before any training. Pictures that are decoded already are
    only resized, where their size differs.

    Args:
        size: height and width in pixels; one number for both.
        mode: `squash` resizes directly; `crop` resizes the shorter side to `size / crop_pct` and takes the centre.
        interpolation: `bicubic`, `bilinear`, `nearest` or `lanczos`.
        on_bad_image: `raise` lists all unreadable pictures in one error; `skip` goes on without them.
        cache_dir: a folder that keeps the decoded pictures for the next run. None keeps them in memory only, unless
            they come to more than `ram_limit`: then they are kept in the user's cache folder.
        workers: threads that decode; 0 is one for each processor, 16 at most.
        ram_limit: bytes above which pictures are mapped from the file instead of held in memory.
        progress: is called with the pictures done and all pictures, now and then.

    Raises:
        DataError: unreadable pictures (each with its path and what is wrong), a full disk, or a wrong argument.
    """
    fit = Fit((size, size) if isinstance(size, int) else (size[0], size[1]), mode, crop_pct, interpolation)
    check_decoding(on_bad_image, cache_dir, workers)
    names = tuple(pictures.name(i) for i in range(len(pictures)))
    if isinstance(pictures.items, torch.Tensor):
        return DecodedPictures(fit.tensor(pictures.items), pictures.labels, names)
    images, left_out = _images(pictures, fit, cache_dir, workers, ram_limit, progress)
    kept, skipped = good_rows(names, left_out, on_bad_image)
    return DecodedPictures(images, pictures.labels[kept], tuple(names[row] for row in kept), skipped)


def check_decoding(on_bad_image: str = "raise", cache_dir: str | os.PathLike | None = None, workers: int = 0) -> None:
    """Raises DataError where the options of decoding mean nothing; looks at no picture."""
    if on_bad_image not in ("raise", "skip"):
        raise DataError(f"on_bad_image must be 'raise' or 'skip', not {on_bad_image!r}")
    if isinstance(workers, bool) or not isinstance(workers, int) or not 0 <= workers <= MOST_WORKERS:
        raise DataError(f"workers must be 0 (one a processor) to {MOST_WORKERS}, not {workers!r}")
    if cache_dir is not None and Path(cache_dir).expanduser().is_file():
        raise DataError(
            f"decoded pictures cannot be kept in {cache_dir}, which is a file: name a folder with cache_dir"
        )


def good_rows(
    names: Sequence[str], left_out: dict[int, str], on_bad_image: str, what: str = "pictures"
) -> tuple[list[int], tuple[tuple[str, str], ...]]:
    """The rows that could be read, and name and reason of the others.

    Raises:
        DataError: lists the others where `on_bad_image` is `raise`, or where nothing is left.
    """
    skipped = tuple((names[row], reason) for row, reason in sorted(left_out.items()))
    if skipped and (on_bad_image == "raise" or len(skipped) == len(names)):
        raise DataError(
            f"{len(skipped)} of {len(names)} {what} cannot be read: mend or remove them, or go on without them "
            f"with on_bad_image='skip' (--data.on_bad_image skip):{listing([f'{name}: {reason}' for name, reason in skipped])}"
        )
    return [row for row in range(len(names)) if row not in left_out], skipped


def _images(
    pictures: Pictures,
    fit: Fit,
    cache_dir: str | os.PathLike | None,
    workers: int,
    ram_limit: int,
    progress: Progress | None,
) -> tuple[torch.Tensor, dict[int, str]]:
    shape = (3, *fit.size)
    total = len(pictures) * int(np.prod(shape))
    left_out: dict[int, str] = {}

    def one(row: int) -> np.ndarray:
        return fit.picture(read_picture(pictures.item(row)))

    def pieces() -> Iterator[np.ndarray]:
        return (np.stack(good) for good in each_decoded(pictures.items, one, workers, left_out, progress) if good)

    key = cache_file.cache_key(pictures, fit) if cache_dir is not None or total > ram_limit else None
    if key is None:
        return _in_memory(pieces(), len(pictures), shape), left_out
    folder = cache_file.default_folder() if cache_dir is None else Path(cache_dir).expanduser()
    flat, notes = cache_file.kept(folder, key, pieces, lambda: {"left_out": left_out}, total)
    images = flat.to(torch.uint8).view(-1, *shape)
    return images.clone() if total <= ram_limit else images, notes["left_out"]


def _in_memory(pieces: Iterator[np.ndarray], count: int, shape: tuple[int, int, int]) -> torch.Tensor:
    images = torch.empty(count, *shape, dtype=torch.uint8)
    done = 0
    for piece in pieces:
        images[done : done + len(piece)] = torch.from_numpy(piece)
        done += len(piece)
    return images[:done]


def each_decoded(
    items: Items,
    one: Callable[[int], Any],
    workers: int,
    left_out: dict[int, str],
    progress: Progress | None,
) -> Iterator[list[Any]]:
    """What `one` makes of each row, in order, in lists of up to `CHUNK`; what cannot be read goes to `left_out`.

    Threads suffice: Pillow decodes and resizes outside Python's lock.
    """

    def tried(row: int) -> Any:
        try:
            return one(row)
        except UNREADABLE as error:
            return _Bad(_reason(items, row, error))

    with pool(workers) as threads:
        for start in range(0, len(items), CHUNK):
            rows = range(start, min(start + CHUNK, len(items)))
            results = list(threads.map(tried, rows))
            left_out.update(
                (row, result.reason) for row, result in zip(rows, results, strict=True) if isinstance(result, _Bad)
            )
            yield [result for result in results if not isinstance(result, _Bad)]
            if progress is not None:
                progress(rows.stop, len(items))


@dataclass(frozen=True)
class _Bad:
    reason: str


def pool(workers: int) -> ThreadPoolExecutor:
    """Threads for decoding, which happens outside Python's lock; 0 is one a processor, 16 at most."""
    return ThreadPoolExecutor(workers or min(16, os.cpu_count() or 1))


def _reason(items: object, row: int, error: BaseException) -> str:
    path = items[row] if isinstance(items, (list, tuple)) else None
    if isinstance(path, Path):
        if not path.exists():
            return "is missing"
        if path.is_file() and not path.stat().st_size:
            return "is empty"
        if isinstance(error, UnidentifiedImageError):
            return "is no picture"
    if isinstance(error, Image.DecompressionBombError):
        return f"has more than {2 * (Image.MAX_IMAGE_PIXELS or 0) / 1e6:.0f} million pixels: save it smaller"
    return str(error).splitlines()[0] if str(error) else type(error).__name__
