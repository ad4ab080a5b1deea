"""Clips of the drawn world, `world/motion/<task>`: real MP4 files, drawn and encoded once, kept in the cache folder."""

from __future__ import annotations

import os
import shutil
import tempfile
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, cast

import torch

from peft_data.base import ClassificationData, Pictures
from peft_data.errors import DataError, nearest
from peft_data.video.options import with_sampling
from peft_data.world import SIZE, cache
from peft_data.world.motion import ABOUT, CLASSES, RATE, draw_clips

if TYPE_CHECKING:
    from av.video.stream import VideoStream

NAMES = {f"world/motion/{task}": f"drawn offline, clips: {about}" for task, about in ABOUT.items()}
SPLITS = {"train": 320, "val": 80, "test": 400}
VERSION = 1


@with_sampling(stride=2)
def load(name: str, seed: int = 0, *, size: int = SIZE) -> tuple[ClassificationData, bool]:
    """One of the tasks: 16 frames a clip, 320 + 80 clips to train and choose on, 400 to test on.

    Args:
        name: `world/motion/<task>`.
        seed: the data's own seed; 0 is the benchmark's.
        size: height and width in pixels, even.

    Raises:
        DataError: there is no such task, or no space to keep it.
    """
    task = name.removeprefix("world/motion/")
    if task not in CLASSES:
        raise DataError(f"there is no task {name!r} in the drawn world{nearest(name, NAMES)}")
    if size < 16 or size % 2:
        raise DataError(f"clips cannot be {size} pixels high and wide: give an even size of 16 or more")
    folder = cache.folder() / "world" / f"motion-v{VERSION}" / f"{task}-{size}px-seed{seed}"
    if not folder.is_dir():
        _write(folder, task, seed, size)
    parts = {}
    for split in SPLITS:
        found = sorted((path.name, path, label) for label, n in enumerate(CLASSES[task])
                       for path in (folder / split / n).glob("*.mp4"))  # fmt: skip
        labels = torch.tensor([label for *_, label in found], dtype=torch.int64)
        parts[split] = Pictures([path for _, path, _ in found], labels, root=folder, split=split)
    return ClassificationData(name, CLASSES[task], recipe="motion", **parts), task == "direction"


def _write(folder: Path, task: str, seed: int, size: int) -> None:
    """All splits as class folders of MP4 files; they get their name when all are there."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(dir=folder.parent, suffix=".part"))
    except OSError as error:
        raise DataError(
            f"clips cannot be kept in {folder.parent} ({error}): point PEFT_DATA_CACHE to another folder"
        ) from error
    try:
        for split, count in SPLITS.items():
            clips, labels = draw_clips(task, split, count, seed, size)
            for number, (clip, label) in enumerate(zip(clips, labels.tolist(), strict=True)):
                write_mp4(temporary / split / CLASSES[task][label] / f"{number:04d}.mp4", clip)
        os.replace(temporary, folder)
    except OSError as error:
        if folder.is_dir():
            return  # another process was faster
        raise DataError(
            f"clips cannot be kept in {folder.parent} ({error}): free some space or point PEFT_DATA_CACHE elsewhere"
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def write_mp4(path: Path, frames: torch.Tensor, rate: int = RATE, keys: int = 8, codec: str = "") -> None:
    """Frames uint8 `T 3 H W` (H, W even) as H.264 (MPEG-4 where there is no encoder of it) with a key frame every `keys`."""
    import av

    if not codec:
        codec = "libx264" if "libx264" in av.codecs_available else "mpeg4"
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as file:
        quality = {"crf": "16", "preset": "veryfast"} if codec == "libx264" else {}
        stream = cast("VideoStream", file.add_stream(codec, rate=Fraction(rate), options=quality))
        stream.height, stream.width = frames.shape[-2:]
        stream.pix_fmt, stream.gop_size = "yuv420p", keys
        stream.codec_context.thread_count = 1
        if codec != "libx264":
            stream.bit_rate = 400_000
        for frame in frames:
            pixels = av.VideoFrame.from_ndarray(frame.permute(1, 2, 0).contiguous().numpy(), format="rgb24")
            file.mux(stream.encode(pixels))
        file.mux(stream.encode())
