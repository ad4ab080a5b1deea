"""torchvision's classification data sets by name, read with its own classes."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from peft_data.base import ClassificationData, Pictures, no_pictures
from peft_data.errors import DataError
from peft_data.splits import tenth_as_val, three_parts

# Set: the values of its `split` (or `train`) for train, val and test; none where it comes in one piece.
_TRAIN_TEST = (True, None, False)
SETS: dict[str, tuple] = {
    "CIFAR10": _TRAIN_TEST,
    "CIFAR100": _TRAIN_TEST,
    "MNIST": _TRAIN_TEST,
    "FashionMNIST": _TRAIN_TEST,
    "KMNIST": _TRAIN_TEST,
    "SVHN": ("train", None, "test"),
    "STL10": ("train", None, "test"),
    "GTSRB": ("train", None, "test"),
    "Food101": ("train", None, "test"),
    "OxfordIIITPet": ("trainval", None, "test"),
    "StanfordCars": ("train", None, "test"),
    "Imagenette": ("train", None, "val"),
    "ImageNet": ("train", None, "val"),
    "Flowers102": ("train", "val", "test"),
    "DTD": ("train", "val", "test"),
    "FGVCAircraft": ("train", "val", "test"),
    "PCAM": ("train", "val", "test"),
    "RenderedSST2": ("train", "val", "test"),
    "Country211": ("train", "valid", "test"),
    "EuroSAT": (),
    "SUN397": (),
    "Caltech101": (),
}
NAMES = {f"torchvision/{name}": "read by torchvision; needs its folder, or download=true" for name in SETS}


def load(name: str, root: str | None, seed: int, *, download: bool = False) -> ClassificationData:
    """`torchvision/<class>`. `root` is the folder that torchvision keeps the set in.

    A set without val gives a tenth of train, one that comes in one piece is split 60/20/20; the seed draws both.

    Args:
        download: fetch the set into `root` where it is not there yet.

    Raises:
        DataError: no root, or the set is not there (says how to get it).
    """
    key = name.removeprefix("torchvision/")
    if root is None:
        raise DataError(f"{name} needs root: the folder that torchvision keeps it in, or shall download it to")
    if download:
        Path(root).mkdir(parents=True, exist_ok=True)
    if not SETS[key]:
        whole = _open(key, root, None, download)
        parts = three_parts(_pictures(whole, key, root, "whole"), 0.2, 0.2, seed)
        return ClassificationData(name, _class_names(whole, parts[0]), *parts)
    given = [None if split is None else _open(key, root, split, download) for split in SETS[key]]
    train, val, test = (
        no_pictures(split) if part is None else _pictures(part, key, root, split)
        for split, part in zip(("train", "val", "test"), given, strict=True)
    )
    names = _class_names(given[0], train)
    if not len(val):
        train, val = tenth_as_val(train, seed)
    return ClassificationData(name, names, train, val, test)


class SetPictures(Sequence):
    """The pictures of a torchvision data set, each a `PIL.Image` when indexed."""

    def __init__(self, whole: Any, fingerprint: str) -> None:
        self.whole, self.fingerprint = whole, fingerprint

    def __len__(self) -> int:
        return len(self.whole)

    def __getitem__(self, i: int) -> Image.Image:
        return self.whole[int(i)][0]


def _open(key: str, root: str, split: bool | str | None, download: bool) -> Any:
    from torchvision import datasets

    maker = getattr(datasets, key)
    takes = inspect.signature(maker).parameters
    options: dict[str, Any] = {} if split is None else {"train" if "train" in takes else "split": split}
    if "download" in takes:
        options["download"] = download
    try:
        return maker(root, **options)
    except (RuntimeError, OSError, ValueError, ImportError) as error:
        why = str(error).splitlines()[0].rstrip(".") if str(error) else type(error).__name__
        how = "open it with download=true, or put the files there" if "download" in takes else "put the files there"
        raise DataError(f"torchvision/{key} cannot be read from {root} ({why}): {how}") from error


def _pictures(whole: Any, key: str, root: str, split: str) -> Pictures:
    labels = _labels(whole)
    pixels = getattr(whole, "data", None)
    if key in ("CIFAR10", "CIFAR100", "MNIST", "FashionMNIST", "KMNIST", "SVHN", "STL10"):
        images = torch.as_tensor(pixels)
        if images.ndim == 3:
            images = images[:, None].expand(-1, 3, -1, -1).contiguous()
        elif images.shape[1] != 3:
            images = images.permute(0, 3, 1, 2).contiguous()
        return Pictures(images, labels, split=split)
    version = hashlib.sha256(labels.numpy().tobytes()).hexdigest()[:16]
    where = f"torchvision/{key} {Path(root).resolve()} {split} {version}"
    return Pictures(SetPictures(whole, where), labels, split=split)


def _labels(whole: Any) -> torch.Tensor:
    for attribute in ("targets", "labels", "_labels", "y"):
        values = getattr(whole, attribute, None)
        if values is not None:
            return torch.as_tensor(values).long()
    samples = getattr(whole, "_samples", None) or getattr(whole, "samples", None)
    pairs = samples if samples is not None else [whole[i] for i in range(len(whole))]
    return torch.tensor([int(pair[1]) for pair in pairs], dtype=torch.int64)


def _class_names(whole: Any, train: Pictures) -> tuple[str, ...]:
    classes = getattr(whole, "classes", None) or getattr(whole, "categories", None)
    if classes:
        return tuple(", ".join(name) if isinstance(name, tuple) else str(name) for name in classes)
    return tuple(f"class {label}" for label in range(int(train.labels.max()) + 1))
