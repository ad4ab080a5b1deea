"""A split of clips, and its frames at the model's size: decoded once and kept, or decoded when they are asked for."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from peft_data.base import ClassificationData, Pictures
from peft_data.cache import check_decoding, good_rows, pool
from peft_data.cache_file import cache_key
from peft_data.errors import DataError
from peft_data.pictures import Fit
from peft_data.video.decoding import open_clip
from peft_data.video.sampling import Sampling
from peft_data.world.cache import cached

VERSION = 2
"""Part of the name of kept frames: raised whenever a file would hold others."""
STRIP = 8
"""Frames in the strip of a clip that a report shows, at most."""


@dataclass(frozen=True, eq=False)
class Clips(Pictures):
    """One split of clips: items are video files or folders of frames.

    Args:
        sampling: which frames are taken.
        directional: whether a mirrored clip may belong to another class, so that nothing may be mirrored.
    """

    sampling: Sampling = field(default_factory=Sampling)
    directional: bool = False
    kind: ClassVar[str] = "clips"


def as_clips(data: ClassificationData, sampling: Sampling, **changes: Any) -> ClassificationData:
    """The same data with splits of clips in place of pictures; `changes` are other fields of it, and `directional`."""
    directional = changes.pop("directional", False)

    def clips(part: Pictures) -> Clips:
        return Clips(part.items, part.labels, part.root, part.split, part.names, sampling, directional)

    parts: dict[str, Any] = {split: clips(getattr(data, split)) for split in ("train", "val", "test")}
    others: dict[str, Any] = {key: getattr(data, key) for key in ("name", "class_names", "recipe", "notes", "left_out")}
    return ClassificationData(**(others | parts | changes))


@dataclass(frozen=True)
class ClipFit:
    """How a frame comes out of its file and to the model's size, `crops 3 H W`: as a picture does, or three squares along the
    longer side."""

    fit: Fit
    crops: int
    decoder: str = "pyav"

    def frame(self, image: Image.Image) -> np.ndarray:
        if self.crops == 1:
            return self.fit.picture(image)[None]
        height, width = self.fit.size
        scale = max(height / image.height, width / image.width)
        h, w = max(height, round(image.height * scale)), max(width, round(image.width * scale))
        pixels = np.asarray(image.resize((w, h), Image.Resampling.BICUBIC)).transpose(2, 0, 1)
        corners = [((h - height) * part // 2, (w - width) * part // 2) for part in range(3)]
        return np.stack([pixels[:, top : top + height, left : left + width] for top, left in corners])


@dataclass(frozen=True, eq=False)
class DecodedClips:
    """N clips that are ready to be indexed.

    Args:
        paths, labels, names: of each clip.
        fit: how frames come to the model's size.
        sampling, directional: as `Clips` has them.
        frames: uint8 `M crops 3 H W`, all frames of all clips one after another, and `ends`, where each clip's end; None
            where they are decoded when they are asked for.
        skipped: clips that could not be read and are left out: name and reason.
        short: clips whose frames repeat.
        repaired: clip → how many of its frames could not be decoded and were replaced by the one before; clips that are
            decoded when they are asked for add to it, and to `broken`, name → reason, what was then left out.
    """

    paths: tuple[Path, ...]
    labels: Tensor
    names: tuple[str, ...]
    fit: ClipFit
    sampling: Sampling
    directional: bool
    frames: Tensor | None = None
    ends: Tensor | None = None
    skipped: tuple[tuple[str, str], ...] = ()
    short: int = 0
    workers: int = 0
    skip_broken: bool = False
    repaired: Counter[str] = field(default_factory=Counter)
    broken: dict[str, str] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def left_out(self) -> dict[str, str]:
        """Clips that could not be read and are left out, so far: name and reason."""
        return dict(self.skipped) | self.broken

    @property
    def decodes(self) -> bool:
        """Whether there is something to decode or cut when a clip is asked for."""
        return self.frames is None

    def take(self, row: int, choose: Callable[[int], Tensor]) -> Tensor:
        """Frames of a clip, uint8 `K crops 3 H W`; `choose` says which, K, from how many there are.

        Raises:
            DataError: it cannot be read.
        """
        if self.frames is not None and self.ends is not None:
            start = int(self.ends[row - 1]) if row else 0
            chosen = choose(int(self.ends[row]) - start)
            return self.frames[start + chosen]
        frames, replaced = read_frames(self.paths[row], self.fit, choose)
        self.note(row, replaced)
        return frames

    def note(self, row: int, replaced: int) -> None:
        """Remembers that frames of a clip could not be decoded."""
        if replaced:
            self.repaired[self.names[row]] = max(replaced, self.repaired[self.names[row]])

    def remaining(self, augment: str) -> str:
        """The augmentation that is left to be done to batches of these clips."""
        return augment

    def preview(self, row: int) -> Image.Image:
        """A strip of the frames that the model sees in its first view, left to right."""
        shown = self.take(row, lambda length: self.sampling.test(length)[0])[:, self.fit.crops // 2]
        return strip(shown)


def strip(frames: Tensor) -> Image.Image:
    """Frames uint8 `T 3 H W` side by side, two white pixels apart, at most `STRIP` of them."""
    if len(frames) > STRIP:
        frames = frames[torch.linspace(0, len(frames) - 1, STRIP).round().long()]
    apart = torch.nn.functional.pad(frames, (0, 2), value=255)
    return Image.fromarray(torch.cat(list(apart), -1)[..., :-2].permute(1, 2, 0).contiguous().numpy())


def views_of(frames: Tensor, sampling: Sampling) -> Tensor:
    """The frames of all temporal views, `V·T crops 3 H W`, as views `V·crops T 3 H W`: a view's crops one after another."""
    return frames.unflatten(0, (-1, sampling.frames)).movedim(2, 1).flatten(0, 1)


def read_clip(path: Path, fit: ClipFit, choose: Callable[[int], Tensor] | None = None) -> Tensor:
    """Frames of a file or folder, uint8 `K crops 3 H W`: those that `choose` says, or all.

    Raises:
        DataError: it cannot be read.
    """
    return read_frames(path, fit, choose)[0]


def read_frames(path: Path, fit: ClipFit, choose: Callable[[int], Tensor] | None = None) -> tuple[Tensor, int]:
    """As `read_clip`, and how many of the frames could not be decoded, in whose place the one before stands."""
    with open_clip(path, fit.decoder) as clip:
        indices = list(range(clip.length)) if choose is None else choose(clip.length).tolist()
        images = clip.read(indices)
        replaced = clip.substituted
    done = {id(image): image for image in images}
    fitted = {key: fit.frame(image) for key, image in done.items()}
    return torch.from_numpy(np.stack([fitted[id(image)] for image in images])), replaced


def decode(
    clips: Clips,
    size: int | tuple[int, int],
    mode: Literal["squash", "crop"] = "crop",
    on_bad_image: Literal["raise", "skip"] = "raise",
    cache_dir: str | os.PathLike | None = None,
    workers: int = 0,
    *,
    crop_pct: float = 1.0,
    ram_limit: int = 2 << 30,
) -> DecodedClips:
    """Frames at `size` as uint8: all of them at once where they come to no more than `ram_limit`, so that broken clips are
    found before any training; else when they are asked for, only those that are needed.

    Args:
        size, mode, crop_pct: as `peft_data.cache.decode` has them.
        on_bad_image: `raise` lists all unreadable clips in one error; `skip` goes on without them.
        cache_dir: a folder that keeps the decoded frames of a small set for the next run.
        workers: threads, a clip each; 0 is one for each processor, 16 at most.
        ram_limit: bytes of frames that are held in memory.

    Raises:
        DataError: clips that cannot be read, a list of all with the reasons.
    """
    check_decoding(on_bad_image, cache_dir, workers)
    height_width = (size, size) if isinstance(size, int) else size
    fit = ClipFit(Fit(height_width, mode, crop_pct), clips.sampling.crops, clips.sampling.decoder)
    names = tuple(clips.name(row) for row in range(len(clips)))
    decoded = partial(DecodedClips, fit=fit, sampling=clips.sampling, directional=clips.directional, workers=workers,
                      skip_broken=on_bad_image == "skip")  # fmt: skip
    paths = clips.files
    if _bytes(paths, fit) > ram_limit:
        return decoded(paths, clips.labels, names)
    bad: dict[int, str] = {}
    make = partial(_whole, paths, fit, workers, bad)
    key = cache_key(clips, fit) if cache_dir is not None else None
    kept = make() if key is None else _kept(f"clips{VERSION}-{key}", make, bad, cache_dir)
    frames, lengths = kept["frames"], kept["lengths"]
    rows, skipped = good_rows(names, bad, on_bad_image, "clips")
    good, good_names = tuple(paths[row] for row in rows), tuple(names[row] for row in rows)
    replaced = zip(good_names, kept["replaced"].tolist(), strict=True)
    return decoded(
        good, clips.labels[rows], good_names, frames=frames, ends=lengths.cumsum(0), skipped=skipped,
        short=int((lengths < clips.sampling.span).sum()), repaired=Counter({name: n for name, n in replaced if n}),
    )  # fmt: skip


class _Incomplete(Exception):
    """Clips are missing from what was decoded, so it is not to be kept."""


def _kept(key: str, make: Callable[[], dict[str, Tensor]], bad: dict[int, str], where: Any) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}

    def complete() -> dict[str, Tensor]:
        found.update(make())
        if bad:
            raise _Incomplete
        return found

    try:
        return cached(key, complete, where)
    except _Incomplete:
        return found


def _whole(paths: Sequence[Path], fit: ClipFit, workers: int, bad: dict[int, str]) -> dict[str, Tensor]:
    def one(row: int) -> Tensor | str:
        try:
            frames, replaced[row] = read_frames(paths[row], fit)
            return frames
        except DataError as error:
            return str(error)

    replaced = [0] * len(paths)
    with pool(workers) as threads:
        found = list(threads.map(one, range(len(paths))))
    bad.update((row, reason) for row, reason in enumerate(found) if isinstance(reason, str))
    clips = [clip for clip in found if isinstance(clip, Tensor)]
    empty = torch.empty(0, fit.crops, 3, *fit.fit.size, dtype=torch.uint8)
    lengths = torch.tensor([len(clip) for clip in clips], dtype=torch.int64)
    of_good = [count for count, clip in zip(replaced, found, strict=True) if isinstance(clip, Tensor)]
    counts = torch.tensor(of_good, dtype=torch.int64)
    return {"frames": torch.cat([empty, *clips]), "lengths": lengths, "replaced": counts}


def _bytes(paths: Sequence[Path], fit: ClipFit, looked_at: int = 8) -> int:
    """What all frames come to at the model's size, judged by a few clips spread over the set."""
    lengths = []
    for path in paths[:: max(1, len(paths) // looked_at)]:
        try:
            with open_clip(path, fit.decoder) as clip:
                lengths.append(clip.length)
        except DataError:
            continue
    each = sum(lengths) / max(1, len(lengths)) * fit.crops * 3 * fit.fit.size[0] * fit.fit.size[1]
    return round(each * len(paths))
