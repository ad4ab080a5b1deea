"""Training clips in their files' own frames, of which each epoch cuts another part, the same of all frames of a clip."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from peft_data.augment import Augment, augment_of
from peft_data.cache import check_decoding, good_rows, pool
from peft_data.errors import DataError
from peft_data.frames import REACH, draw
from peft_data.pictures import Fit
from peft_data.video.clips import ClipFit, Clips, DecodedClips, decode
from peft_data.video.decoding import open_clip

Frames = list[np.ndarray]


@dataclass(frozen=True, eq=False)
class FramedClips(DecodedClips):
    """N training clips of which parts are cut.

    Args:
        augment: what is cut and how; `then` of it is left to be done to batches.
        kept: the frames of each clip, uint8 `h w 3`, where they come to no more than the limit; else they are decoded when
            they are asked for.
    """

    augment: Augment = augment_of("crop")
    kept: Sequence[Frames] | None = None

    @property
    def decodes(self) -> bool:
        return True

    def remaining(self, augment: str) -> str:
        return self.augment.then

    def cut(self, row: int, choose: Callable[[int], Tensor], chance: torch.Generator) -> Tensor:
        """Parts of frames, uint8 `T 3 H W`; `choose` says which frames, from how many there are, and `chance` draws the part.

        Raises:
            DataError: the clip cannot be read.
        """
        if self.kept is not None:
            frames = [self.kept[row][index] for index in choose(len(self.kept[row])).tolist()]
        else:
            frames, replaced = read_arrays(self.paths[row], self.fit.decoder, choose)
            self.note(row, replaced)
        own = frames[0].shape[0], frames[0].shape[1]
        return torch.stack(draw(self.augment, own, chance).cut(frames, own, self.fit.fit))


def read_arrays(path: Path, decoder: str, choose: Callable[[int], Tensor] | None, most: int = 0) -> tuple[Frames, int]:
    """Frames of a file or folder, uint8 `h w 3`, their shorter sides `most` at most (0: as they are), and how many of them
    could not be decoded, in whose place the one before stands."""
    with open_clip(path, decoder) as clip:
        images = clip.read(list(range(clip.length)) if choose is None else choose(clip.length).tolist())
        replaced = clip.substituted
    done: dict[int, np.ndarray] = {}
    for image in images:
        if id(image) not in done:
            share = most / min(image.size) if most else 1.0
            size = (max(1, round(image.width * share)), max(1, round(image.height * share)))
            done[id(image)] = np.array(image if share >= 1 else image.resize(size, Image.Resampling.BICUBIC))
    return [done[id(image)] for image in images], replaced


def decode_clips_for_training(
    clips: Clips, size: int | tuple[int, int], augment: str = "none", **how: Any
) -> DecodedClips:
    """Training clips as an augmentation needs them: at the model's size, or in their own frames where it cuts parts.

    Args and errors are those of `peft_data.video.clips.decode`, `how` its further ones.

    Raises:
        DataError: an unknown augmentation, too.
    """
    chosen = augment_of(augment)
    return _framed(clips, size, chosen, **how) if chosen.cuts else decode(clips, size, **how)


def _framed(
    clips: Clips, size: int | tuple[int, int], augment: Augment, mode: Literal["squash", "crop"] = "crop",
    on_bad_image: str = "raise", cache_dir: str | os.PathLike | None = None, workers: int = 0, *, crop_pct: float = 1.0,
    ram_limit: int = 2 << 30,
) -> FramedClips:  # fmt: skip
    check_decoding(on_bad_image, cache_dir, workers)
    height_width = (size, size) if isinstance(size, int) else (size[0], size[1])
    fit = ClipFit(Fit(height_width, mode, crop_pct), clips.sampling.crops, clips.sampling.decoder)
    names, paths = tuple(clips.name(row) for row in range(len(clips))), clips.files
    most, bad, found = REACH * max(height_width), {}, None
    if _bytes(paths, fit.decoder, most) <= ram_limit:
        found = _all(paths, fit.decoder, workers, most, bad)
    rows, skipped = good_rows(names, bad, on_bad_image, "clips")
    kept = [found[row][0] for row in rows] if found is not None else None
    repaired = Counter({names[row]: found[row][1] for row in rows if found[row][1]}) if found is not None else Counter()
    return FramedClips(
        tuple(paths[row] for row in rows), clips.labels[rows], tuple(names[row] for row in rows), fit, clips.sampling,
        clips.directional, skipped=skipped, short=sum(len(each) < clips.sampling.span for each in kept or ()),
        workers=workers, skip_broken=on_bad_image == "skip", repaired=repaired, augment=augment, kept=kept,
    )  # fmt: skip


def _all(paths: Sequence[Path], decoder: str, workers: int, most: int, bad: dict[int, str]) -> list[tuple[Frames, int]]:
    def one(row: int) -> tuple[Frames, int]:
        try:
            return read_arrays(paths[row], decoder, None, most)
        except DataError as error:
            bad[row] = str(error)
            return [], 0

    with pool(workers) as threads:
        return list(threads.map(one, range(len(paths))))


def _bytes(paths: Sequence[Path], decoder: str, most: int, looked_at: int = 8) -> int:
    """What all frames come to, judged by a few clips that are spread over the set."""
    sizes = []
    for path in paths[:: max(1, len(paths) // looked_at)]:
        try:
            with open_clip(path, decoder) as clip:
                image = clip.read([0])[0]
                share = min(1.0, most / min(image.size))
                sizes.append(3 * image.width * image.height * share * share * clip.length)
        except DataError:
            continue  # told where it is decoded
    return round(sum(sizes) / max(1, len(sizes)) * len(paths))
