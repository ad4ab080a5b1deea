"""How fast pictures come to the model: decoded once and kept as bytes, against Pillow and torchvision transforms; first whole
pictures, then random parts of them (`crop_flip`, torchvision's RandomResizedCrop and a mirror).

    python -m benchmarks.input_pipeline

Writes JPEG files (500 × 375 by default, quality 90) to a temporary folder and makes normalised float batches of them in each way,
one after the other, round by round; prints the medians of pictures a second and each way's time over the first's.
`--width 4000 --height 3000` are a telephone's pictures.
Everything runs in one thread, as each worker process of a usual loader does.
"""

from __future__ import annotations

import argparse
import inspect
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft_data import Pictures
from peft_data.augment import augmentation, normalise
from peft_data.batches import Batches
from peft_data.cache import decode
from peft_data.chance import generator_of
from peft_data.frames import decode_for_training
from peft_data.video.batches import batches_of
from PIL import Image
from torchvision import transforms
from torchvision.transforms import InterpolationMode

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
Epoch = Callable[[], Iterator[torch.Tensor]]


def main(
    images: int = 256, size: int = 224, batch_size: int = 64, rounds: int = 7, width: int = 500, height: int = 375
) -> dict[str, float]:
    """Prints the tables and gives each way's time over that of Pillow and torchvision."""
    ratios: dict[str, float] = {}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with tempfile.TemporaryDirectory() as folder:
            paths = _write(Path(folder), images, width, height)
            print(
                f"{images} JPEG files {width} × {height}, {size} px, batches of {batch_size}, {rounds} rounds, one thread"
            )
            for make in (_ways, _parts):
                seconds = _interleaved(make(paths, size, batch_size, Path(folder)), rounds)
                first = next(iter(seconds.values()))
                print(f"{'way':<60}{'pictures a second':>18}{'time':>8}")
                for way, taken in seconds.items():
                    print(f"{way:<60}{images / taken:>18,.0f}{taken / first:>8.3f}")
                ratios |= {way: taken / first for way, taken in seconds.items()}
    finally:
        torch.set_num_threads(threads)
    return ratios


def _pillow(paths: list[Path], batch_size: int, *changes: Any) -> Epoch:
    """As training scripts do it: each file opened, changed, made a tensor and normalised, one after another."""
    usual = transforms.Compose([*changes, transforms.ToTensor(), transforms.Normalize(MEAN, STD)])

    def epoch() -> Iterator[torch.Tensor]:
        for rows in torch.randperm(len(paths)).split(batch_size):
            opened = [Image.open(paths[row]).convert("RGB") for row in rows.tolist()]
            changed: list[Any] = [usual(image) for image in opened]
            yield torch.stack(changed)

    return epoch


def _parts(paths: list[Path], size: int, batch_size: int, folder: Path) -> dict[str, Epoch]:
    pictures = Pictures(paths, torch.zeros(len(paths), dtype=torch.int64), root=folder)
    crop = transforms.RandomResizedCrop(size, interpolation=InterpolationMode.BICUBIC)
    pillow = _pillow(paths, batch_size, crop, transforms.RandomHorizontalFlip())

    def cut(limit: int) -> Epoch:
        framed = decode_for_training(pictures, size, "crop_flip", workers=1, ram_limit=limit)
        batches = batches_of(framed, batch_size)
        return lambda: (normalise(batch.images, MEAN, STD) for batch in batches)

    def reduced() -> Iterator[torch.Tensor]:
        for step, batch in enumerate(small):
            yield normalise(change(batch.images, generator_of(0, step)), MEAN, STD)

    small, change = Batches(decode(pictures, size), batch_size), augmentation("crop_flip")
    return {
        "Pillow, torchvision RandomResizedCrop, mirror": pillow,
        "cut from kept frames": cut(2 << 30),
        "cut from the files, decoded for each part": cut(0),
        "cut from pictures at the model's size (no file's detail)": reduced,
    }


def _ways(paths: list[Path], size: int, batch_size: int, folder: Path) -> dict[str, Epoch]:
    labels = torch.zeros(len(paths), dtype=torch.int64)
    pictures = Pictures(paths, labels, root=folder)
    in_memory = Batches(decode(pictures, size), batch_size)
    mapped = Batches(decode(pictures, size, cache_dir=folder / "cache", ram_limit=0), batch_size)
    pillow = _pillow(paths, batch_size, transforms.Resize((size, size), InterpolationMode.BICUBIC))

    def kept(batches: Batches) -> Epoch:
        return lambda: (normalise(batch.images, MEAN, STD) for batch in batches)

    return {
        "Pillow, torchvision Resize, ToTensor, Normalize": pillow,
        "kept in memory, normalised": kept(in_memory),
        "mapped from the cache file, normalised": kept(mapped),
        "kept in memory, as bytes (normalised on the device)": lambda: (batch.images for batch in in_memory),
    }


def _write(folder: Path, count: int, width: int, height: int) -> list[Path]:
    random = np.random.default_rng(0)
    paths = []
    for i in range(count):
        coarse = Image.fromarray(random.integers(0, 256, (24, 32, 3), dtype=np.uint8))
        paths.append(folder / f"{i:05d}.jpg")
        coarse.resize((width, height), Image.Resampling.BICUBIC).save(paths[-1], quality=90)
    return paths


def _interleaved(ways: dict[str, Epoch], rounds: int) -> dict[str, float]:
    taken: dict[str, list[float]] = {way: [] for way in ways}
    for turn in range(rounds + 1):
        for way, epoch in ways.items():
            start = time.perf_counter()
            for batch in epoch():
                batch.shape  # noqa: B018
            if turn:  # the first round warms up
                taken[way].append(time.perf_counter() - start)
    return {way: statistics.median(times) for way, times in taken.items()}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    for option, default in inspect.signature(main).parameters.items():
        parser.add_argument(f"--{option.replace('_', '-')}", type=int, default=default.default)
    main(**vars(parser.parse_args()))
