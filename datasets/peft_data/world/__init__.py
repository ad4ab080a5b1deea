"""The offline world: 19 drawn tasks that mirror VTAB-1k one to one, in its order and its three groups.

Every picture is drawn from a seed (`peft_data.world.scene.Scene` and the renderers beside it); nothing is downloaded.
The same seed gives the same bytes on one machine; between processors a pixel may differ by one of its 256 levels, because
their sines and arctangents end in different bits. Labels never differ.
800 + 200 pictures to train and choose on, 2,000 to test on.
"""

from __future__ import annotations

import importlib

import torch

from peft_data.base import ClassificationData
from peft_data.errors import DataError, nearest

from .cache import drawn_splits
from .draw import Draw

VERSION = 2
"""Part of the cache's key: raised whenever any drawn byte changes."""
SIZE = 40
BLOCK = 200
SPLITS = {"train": 800, "val": 200, "test": 2000}

GROUPS: dict[str, tuple[str, ...]] = {
    "natural": ("objects", "silhouettes", "textures", "flowers", "creatures", "street_digits", "scenes"),
    "specialised": ("cells", "fields", "aerial", "retina"),
    "structured": ("count", "distance", "arena", "road", "position", "orientation", "azimuth", "elevation"),
}
_HOME = {task: group for group, tasks in GROUPS.items() for task in tasks}
_FILE = _HOME | {"scenes": "landscapes", "fields": "maps", "aerial": "maps"}
TASKS = tuple(task for tasks in GROUPS.values() for task in tasks)
_MIRRORS = (
    "CIFAR-100",
    "Caltech101",
    "DTD",
    "Flowers102",
    "Pets",
    "SVHN",
    "Sun397",
    "Patch Camelyon",
    "EuroSAT",
    "Resisc45",
    "Retinopathy",
    "Clevr count",
    "Clevr distance",
    "DMLab",
    "KITTI",
    "dSprites location",
    "dSprites orientation",
    "smallNORB azimuth",
    "smallNORB elevation",
)
NAMES = {
    f"world/{task}": f"drawn offline, {_HOME[task]} group, after VTAB's {mirror}"
    for task, mirror in zip(TASKS, _MIRRORS, strict=True)
}


def class_names(task: str) -> tuple[str, ...]:
    """The class names of a task, for example `class_names("flowers")`."""
    from . import landscapes, maps, natural, outlines
    from .figures import SPECIES

    named = {
        "objects": natural.OBJECTS,
        "silhouettes": outlines.THINGS,
        "textures": natural.SURFACES,
        "flowers": natural.FLOWERS,
        "creatures": SPECIES,
        "street_digits": map(str, range(10)),
        "scenes": landscapes.PLACES,
        "cells": ("healthy", "tumour"),
        "fields": maps.LANDS,
        "aerial": maps.PLACES,
        "retina": ("none", "mild", "moderate", "severe", "very severe"),
        "count": map(str, range(1, 9)),
        "distance": [f"{1.5 + k / 2:g} to {2 + k / 2:g}" for k in range(6)],
        "arena": [f"{kind} {far}" for kind in ("wanted", "unwanted") for far in ("near", "halfway", "far")],
        "road": ("near", "halfway", "far", "none"),
        "position": [f"column {k}" for k in range(16)],
        "orientation": [f"{22.5 * (k + 0.5):g} degrees" for k in range(16)],
        "azimuth": [f"{20 * k + 10} degrees" for k in range(18)],
        "elevation": [f"{80 * (k + 0.5) / 9:.0f} degrees" for k in range(9)],
    }
    return tuple(named[task])


def draw_task(task: str, split: str, n: int, seed: int = 0, size: int = SIZE) -> tuple[torch.Tensor, torch.Tensor]:
    """Draws pictures of a task without the cache.

    Args:
        task: for example `"count"`.
        split: any word; pictures of different splits have nothing in common.
        n: how many.
        seed: another seed gives other pictures of the same classes.
        size: height and width in pixels.

    Returns:
        pictures uint8 N 3 H W and labels int64 N.
    """
    module = importlib.import_module(f".{_FILE[task]}", __name__)
    blocks = [
        getattr(module, task)(Draw(task, split, seed, block), min(BLOCK, n - block * BLOCK), size)
        for block in range(-(-n // BLOCK))
    ]
    return torch.cat([pictures for pictures, _ in blocks]), torch.cat([labels for _, labels in blocks])


def load(name: str, seed: int = 0, *, size: int = SIZE) -> ClassificationData:
    """One of the 19 tasks.

    Args:
        name: `world/<task>`.
        seed: the data's own seed. Results are comparable only under the same one; 0 is the benchmark's.
        size: height and width in pixels.

    Raises:
        DataError: there is no such task, or no space to keep it.
    """
    task = name.removeprefix("world/")
    if task not in TASKS:
        raise DataError(f"there is no task {name!r} in the drawn world{nearest(name, NAMES)}")
    key = f"world/v{VERSION}/{task}-{size}px-seed{seed}"
    parts = drawn_splits(key, SPLITS, lambda split, n: draw_task(task, split, n, seed, size))
    return ClassificationData(f"world/{task}", class_names(task), *parts, recipe="world")
