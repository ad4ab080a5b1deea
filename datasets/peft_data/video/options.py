"""What the formats of clips share: the options of sampling, and finding the files that a list names."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import torch

from peft_data.base import ClassificationData, Pictures, no_pictures
from peft_data.errors import DataError, listing
from peft_data.lists import is_there, spellings
from peft_data.options import takes
from peft_data.video.clips import as_clips
from peft_data.video.decoding import SUFFIXES, decoder_of
from peft_data.video.sampling import Sampling
from peft_data.walk import is_hidden


def sampling_options(
    *,
    frames: int = 8,
    sampling: Literal["uniform", "dense"] = "uniform",
    stride: int = 8,
    views: int = 1,
    crops: Literal[1, 3] = 1,
    decoder: Literal["pyav", "torchcodec"] = "pyav",
    windows: Literal["slowfast", "mmaction", "st_adapter"] = "slowfast",
) -> Sampling:
    """Options of every set of clips.

    Args:
        frames: Frames of a clip that the model sees.
        sampling: `uniform` takes a frame from each of as many segments, `dense` frames `stride` apart.
        stride: Of dense sampling: frames from one to the next.
        views: Windows (or places in the segments) at test, whose scores are averaged.
        crops: Squares cut from each frame at test: 1 or 3.
        decoder: What reads video files: PyAV, or torchcodec where it is installed.
        windows: Where windows start and how long they are: as SlowFast and VideoMAE, as mmaction2 (AIM), or as ST-Adapter.
    """
    decoder_of(decoder)
    return Sampling(frames, sampling, stride, views, crops, decoder, windows)


def classes_of_clips(*, val: float = 0.2, test: float = 0.2, directional: bool = False) -> None:
    """Options of clips that may come without splits.

    Args:
        val: Part for choosing, where the data fix no splits.
        test: Part for testing, where the data fix no splits.
        directional: Whether a mirrored clip may belong to another class.
    """


def with_sampling(**defaults: Any) -> Callable[[Callable[..., tuple[ClassificationData, bool]]], Callable]:
    """Makes a format's `load`, which takes its own options and gives the data as pictures and whether a mirrored clip may
    be of another class, one that takes `sampling_options` too and gives clips. `defaults` are the format's own."""

    def wrap(load: Callable[..., tuple[ClassificationData, bool]]) -> Callable:
        def opened(*where: Any, **options: Any) -> ClassificationData:
            how = sampling_options(**{key: options.pop(key) for key in names})
            data, directional = load(*where, **options)
            return as_clips(data, how, directional=directional)

        functools.update_wrapper(opened, load)
        opened.__signature__ = inspect.signature(load)  # type: ignore[attr-defined]
        return takes(sampling_options, **defaults)(opened)

    names = inspect.signature(sampling_options).parameters
    return wrap


def find_clip(name: str, folders: Sequence[Path]) -> Path | None:
    """The file or folder of frames of that name in the first of the folders that has it, with or without its suffix."""
    for folder in folders:
        for spelt in spellings(name):
            path = folder / spelt
            if is_there(path, folders_too=True):
                return path
            for suffix in SUFFIXES:
                if is_there(found := path.with_name(path.name + suffix) if path.name else path):
                    return found
    return None


def listed_clips(
    rows: Sequence[tuple[str, int]], folders: Sequence[Path], root: Path, split: str, source: Path
) -> Pictures:
    """The clips (name, label) of a list.

    Args:
        source: the list, for the message.

    Raises:
        DataError: shows all that are in none of the folders.
    """
    if not rows:
        return no_pictures(split)
    found = [(find_clip(name, folders), name) for name, _ in rows]
    missing = [str(folders[0] / name) for path, name in found if path is None]
    if missing:
        count = "one clip is" if len(missing) == 1 else f"{len(missing)} clips are"
        raise DataError(f"{count} listed in {source} but not there: put them in place{listing(missing)}")
    labels = torch.tensor([label for _, label in rows], dtype=torch.int64)
    return Pictures([path for path, _ in found if path is not None], labels, root=root, split=split)


def first_of(root: Path, patterns: Sequence[str]) -> Path | None:
    """The first file, in order of patterns and names, that one of the patterns finds under root, whatever its letters' case."""

    def either(letter: str) -> str:
        return f"[{letter.lower()}{letter.upper()}]" if letter.isalpha() and letter.isascii() else letter

    found = (path for pattern in patterns for path in sorted(root.glob("".join(map(either, pattern)))))
    return next((path for path in found if path.is_file() and not is_hidden(path.name)), None)
