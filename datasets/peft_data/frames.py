"""Training pictures in their files' own frames, of which each step cuts another part.

Frames are decoded once and kept as bytes where they come to no more than `ram_limit`, or where a cache folder is named;
else each is decoded in threads when it is asked for, as far as the part needs it. A kept frame whose shorter side is
above `REACH` times the model's is made smaller: no part that `random_part` draws from it has to be blown up then which
its file's would not, and parts are the same shares of it.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from peft_data import cache_file
from peft_data.augment import Augment, augment_of, augmentation, changed
from peft_data.base import Items, Pictures
from peft_data.cache import Decoded, DecodedPictures, Progress, check_decoding, decode, each_decoded, good_rows, pool
from peft_data.chance import generator_of
from peft_data.crops import cut
from peft_data.pictures import UNREADABLE, Fit, own_size, read_picture

REACH = 4
LOOKED_AT = 64
"""Pictures from whose headers the bytes of all frames are judged."""
Size = tuple[int, int]


@dataclass(frozen=True, eq=False)
class FramedPictures(Decoded):
    """N training pictures of which parts are cut.

    Args:
        labels: int64 `N`.
        names: N names, as `Pictures.name` gives them.
        items: what `Pictures` holds.
        own: height and width of each file's own frame.
        fit: the model's size, and how the whole picture comes to it for a preview.
        augment: what is cut and how; `then` of it is left to be done to batches.
        kept: the frames, uint8 `h w 3` each, where they are kept.
        skipped: pictures that could not be read and are left out: name and reason.
        workers: threads.
        fingerprint: what changes with the pictures.
    """

    labels: Tensor
    names: tuple[str, ...]
    items: Items
    own: tuple[Size, ...]
    fit: Fit
    augment: Augment
    kept: Sequence[np.ndarray] | None = None
    skipped: tuple[tuple[str, str], ...] = ()
    workers: int = 0
    fingerprint: str = ""

    def remaining(self, augment: str) -> str:
        """The augmentation that is left to be done to batches of these pictures."""
        return self.augment.then

    def cut(self, row: int, chance: torch.Generator) -> Tensor:
        """A part of a picture at the model's size, uint8 `3 H W`; which part is drawn from `chance`.

        Raises:
            UNREADABLE: it is decoded here and was damaged meanwhile.
        """
        if self.kept is not None:  # drawn on the kept frame's own pixels, so that its part is exact
            size = self.kept[row].shape[0], self.kept[row].shape[1]
            return draw(self.augment, size, chance).cut([self.kept[row]], size, self.fit)[0]
        drawn = draw(self.augment, self.own[row], chance)
        return drawn.cut([self._decoded(row, drawn)], self.own[row], self.fit)[0]

    def _decoded(self, row: int, drawn: Drawn) -> np.ndarray:
        # whole at twice the size that the part is wanted at, where the file can be decoded so
        share = max(2 * size / side for size, side in zip(self.fit.size, drawn.part[2:], strict=True))
        height, width = self.own[row]
        least = (round(height * share), round(width * share)) if share < 1 else None
        item: Any = self.items[row]
        return np.array(read_picture(item, least))

    def whole(self, rows: Sequence[int]) -> Tensor:
        """Pictures as the model is tested on them, uint8 `B 3 H W`."""

        def one(row: int) -> np.ndarray:
            if isinstance(self.items, Tensor):  # decoded already: as `decode` brings it to the model's size
                return self.fit.tensor(self.items[row : row + 1])[0].numpy()
            if self.kept is not None and self.kept[row].shape[:2] == self.own[row]:
                return self.fit.picture(Image.fromarray(self.kept[row]))
            return self.fit.picture(read_picture(self.items[row]))

        with pool(self.workers) as threads:
            return torch.from_numpy(np.stack(list(threads.map(one, rows))))

    def preview(self, row: int) -> Image.Image:
        """A picture as the model is tested on it, to be looked at."""
        return Image.fromarray(self.whole([row])[0].permute(1, 2, 0).contiguous().numpy())

    def augmented(self, rows: Sequence[int], augment: str, *numbers: int) -> Tensor:
        """Parts of the pictures `rows` after the whole augmentation, uint8 `B 3 H W`: each part is drawn from (numbers, row)."""
        with pool(self.workers) as threads:
            parts = torch.stack(list(threads.map(lambda row: self.cut(row, generator_of(*numbers, row)), rows)))
        return augmentation(self.augment.then)(parts, generator_of(*numbers, rows[0]))

    def digest(self) -> str:
        """A hash that changes with the pictures and the model's size; empty where it cannot be known what they are."""
        return self.fingerprint and hashlib.sha256(f"{self.fingerprint} {self.fit} {self.names}".encode()).hexdigest()


def framed(images: Sequence[Tensor], fit: Fit, augment: str) -> FramedPictures:
    """Pictures in memory, uint8 `3 h w` of any sizes, to cut parts from: they have no labels and no names."""
    frames = [image.cpu().permute(1, 2, 0).contiguous().numpy() for image in images]
    own = tuple((frame.shape[0], frame.shape[1]) for frame in frames)
    return FramedPictures(
        torch.zeros(len(frames), dtype=torch.int64), (), frames, own, fit, augment_of(augment), frames
    )


@dataclass(frozen=True)
class Drawn:
    """What was drawn for one picture, or for all frames of a clip: changes of the whole, the part, and mirrored or not."""

    changes: list[Any]
    part: tuple[int, int, int, int]
    mirrored: bool

    def cut(self, frames: Sequence[np.ndarray], own: Size, fit: Fit) -> list[Tensor]:
        """Parts of frames, uint8 `h w 3`, at the model's size, uint8 `3 H W`."""
        if self.changes:
            images = {id(frame): Image.fromarray(frame) for frame in frames}
            done = changed([images[id(frame)] for frame in frames], self.changes)
            frames = [np.array(image) for image in done]
        pieces = [cut(frame, self.part, own, fit.size, fit.interpolation) for frame in frames]
        return [piece.flip(-1) for piece in pieces] if self.mirrored else pieces


def draw(augment: Augment, own: Size, chance: torch.Generator) -> Drawn:
    """What is cut from a frame of `own` height and width."""
    assert augment.parts is not None
    changes = augment.before(chance) if augment.before is not None else []
    part = augment.parts(torch.tensor([own[0]]), torch.tensor([own[1]]), chance)[0].tolist()
    return Drawn(changes, tuple(part), augment.mirror and float(torch.rand((), generator=chance)) < 0.5)


def decode_for_training(
    pictures: Pictures, size: int | Size, augment: str = "none", **how: Any
) -> DecodedPictures | FramedPictures:
    """Training pictures as an augmentation needs them: at the model's size, or in their own frames where it cuts parts.

    Args and errors are those of `peft_data.cache.decode`, `how` its further ones; every picture is read once here.

    Raises:
        DataError: an unknown augmentation, too.
    """
    chosen = augment_of(augment)
    return _framed(pictures, size, chosen, **how) if chosen.cuts else decode(pictures, size, **how)


def _framed(
    pictures: Pictures, size: int | Size, augment: Augment, mode: Any = "squash", interpolation: str = "bicubic",
    on_bad_image: str = "raise", cache_dir: str | os.PathLike | None = None, workers: int = 0, *, crop_pct: float = 0.875,
    ram_limit: int = 2 << 30, progress: Progress | None = None,
) -> FramedPictures:  # fmt: skip
    check_decoding(on_bad_image, cache_dir, workers)
    fit = Fit((size, size) if isinstance(size, int) else (size[0], size[1]), mode, crop_pct, interpolation)
    names = tuple(pictures.name(i) for i in range(len(pictures)))
    if isinstance(pictures.items, Tensor):
        frames = list(pictures.items.cpu().permute(0, 2, 3, 1).contiguous().numpy())
        own = tuple((frame.shape[0], frame.shape[1]) for frame in frames)
        print_of = hashlib.sha256(b"".join(frames)).hexdigest() if len(frames) else ""
        return FramedPictures(
            pictures.labels, names, pictures.items.cpu(), own, fit, augment, frames, fingerprint=print_of
        )
    most = REACH * max(fit.size)
    expected = _bytes(pictures, most)
    keep = cache_dir is not None or expected <= ram_limit
    left_out: dict[int, str] = {}
    shapes: list[list[int]] = []

    def pieces() -> Iterator[np.ndarray]:
        for results in each_decoded(
            pictures.items, lambda row: _frame(pictures.item(row), most, keep), workers, left_out, progress
        ):
            for frame, own in results:
                shapes.append([*frame.shape[:2], *own])
                yield frame

    key = cache_file.cache_key(pictures, f"frames {most} {keep}")
    kept: list[np.ndarray] = []
    if key is not None and (
        cache_dir is not None or not keep
    ):  # of frames that are not kept the file says they can be read
        folder = cache_file.default_folder() if cache_dir is None else Path(cache_dir).expanduser()
        notes_of = lambda: {"left_out": left_out, "shapes": shapes}  # noqa: E731
        flat, notes = cache_file.kept(folder, key, pieces, notes_of, expected if keep else 0)
        left_out, shapes = notes["left_out"], notes["shapes"]
        if keep:
            whole = flat.to(torch.uint8).clone() if len(flat) <= ram_limit else flat
            pixels = whole.split([h * w * 3 for h, w, *_ in shapes])
            kept = [piece.view(h, w, 3).numpy() for piece, (h, w, *_) in zip(pixels, shapes, strict=True)]
    else:
        kept = list(pieces())
    rows, skipped = good_rows(names, left_out, on_bad_image)
    items = [pictures.items[row] for row in rows] if pictures.is_files else pictures.subset(rows).items
    return FramedPictures(
        pictures.labels[rows], tuple(names[row] for row in rows), items, tuple((h, w) for *_, h, w in shapes), fit, augment,
        kept if keep else None, skipped, workers, key or "",
    )  # fmt: skip


def _frame(item: Any, most: int, keep: bool) -> tuple[np.ndarray, Size]:
    """A picture with its shorter side at `most`, and its own size; nothing of it where it is read only to see that it can be."""
    own = own_size(item) if isinstance(item, Path) else None
    share = 0.0 if not keep else most / min(own) if own else 1.0
    least = (max(1, round(own[0] * 2 * share)), max(1, round(own[1] * 2 * share))) if own and 2 * share < 1 else None
    image = read_picture(item, least)
    if (
        own is None or image.height >= own[0] or image.width >= own[1]
    ):  # whole: what was read knows better than the header
        own = image.height, image.width
    if not keep:
        return np.empty((0, 0, 3), np.uint8), own
    if min(own) > most:
        height, width = (max(1, round(side * most / min(own))) for side in own)
        image = image.resize((width, height), Image.Resampling.BICUBIC)
    return np.array(image), own


def _bytes(pictures: Pictures, most: int) -> int:
    """What all frames come to, judged by the headers of some that are spread over the set."""
    sizes = []
    for row in range(0, len(pictures), max(1, len(pictures) // LOOKED_AT)):
        try:
            item = pictures.item(row)
            height, width = own_size(item) if isinstance(item, Path) else (item.height, item.width)
            share = min(1.0, most / min(height, width))
            sizes.append(3 * height * width * share * share)
        except UNREADABLE:
            continue  # told when it is decoded
    return round(sum(sizes) / max(1, len(sizes)) * len(pictures))
