"""Augmentation and normalisation of whole batches of decoded pictures; chance comes from a generator alone."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial

import torch

from peft_data.errors import DataError, nearest

Augmentation = Callable[[torch.Tensor, torch.Generator], torch.Tensor]


def augmentation(name: str) -> Augmentation:
    """A function of a batch (uint8 `B 3 H W`, or clips `B T 3 H W`) and a CPU generator, giving a batch of the same kind:
    `none`, `flip`, `crop`, `crop_flip`, `randaug` or `randaug_crop`. All frames of a clip are changed alike. What it does is
    a function of the generator's state, on whichever device the batch is.

    Raises:
        DataError: an unknown name.
    """
    if name not in AUGMENTATIONS:
        known = ", ".join(AUGMENTATIONS)
        raise DataError(f"there is no augmentation {name!r}{nearest(name, AUGMENTATIONS)}: one of {known}")
    return partial(_of_pictures_or_clips, AUGMENTATIONS[name])


def _of_pictures_or_clips(change: Augmentation, images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    if images.ndim == 4:
        return change(images, generator)
    return change(images.flatten(1, 2), generator).unflatten(1, (-1, 3))


def normalise(
    images: torch.Tensor, mean: Sequence[float], std: Sequence[float], dtype: torch.dtype = torch.float32
) -> torch.Tensor:
    """`(images / 255 − mean) / std` as one multiplication and addition, in place on the converted batch.

    Args:
        images: uint8 `B 3 H W`.
        mean, std: three numbers each, of channels that go from 0 to 1.
    """
    scale = torch.tensor([1 / (255 * s) for s in std], dtype=torch.float32, device=images.device)
    shift = torch.tensor([-m / s for m, s in zip(mean, std, strict=True)], dtype=torch.float32, device=images.device)
    return images.float().mul_(scale.view(-1, 1, 1)).add_(shift.view(-1, 1, 1)).to(dtype)


def none(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """The batch itself."""
    return images


def flip(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Each picture is mirrored left to right with probability one half."""
    return _flipped(images, torch.rand(len(images), generator=generator) < 0.5)


def _flipped(images: torch.Tensor, which: torch.Tensor) -> torch.Tensor:
    return torch.where(which.to(images.device)[:, None, None, None], images.flip(-1), images)


def crop_flip(
    images: torch.Tensor,
    generator: torch.Generator,
    scale: tuple[float, float] = (0.08, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
    mirror: bool = True,
) -> torch.Tensor:
    """A random part of each picture, mirrored with probability one half (not without `mirror`), brought back to the whole
    size (bicubic).

    The part has a share of the area uniform in `scale` and an aspect ratio log-uniform in `ratio`, as torchvision's
    `RandomResizedCrop` draws them; where none of ten draws fits into the picture it is the whole.
    """
    from torchvision.transforms.v2 import InterpolationMode
    from torchvision.transforms.v2.functional import resized_crop

    count, _, height, width = images.shape
    draws = torch.rand(5, count, 10, generator=generator, dtype=torch.float64)
    area = height * width * (scale[0] + (scale[1] - scale[0]) * draws[0])
    aspect = torch.exp(math.log(ratio[0]) + (math.log(ratio[1]) - math.log(ratio[0])) * draws[1])
    w, h = (area * aspect).sqrt().round(), (area / aspect).sqrt().round()
    fits = (w >= 1) & (w <= width) & (h >= 1) & (h <= height)
    first = fits.int().argmax(1, keepdim=True)
    found = fits.any(1)
    w = torch.where(found, w.gather(1, first)[:, 0], width)
    h = torch.where(found, h.gather(1, first)[:, 0], height)
    left = (draws[2, :, 0] * (width - w + 1)).floor()
    top = (draws[3, :, 0] * (height - h + 1)).floor()
    boxes = torch.stack([top, left, h, w], 1).long().tolist()
    # One by one: torch resizes bytes natively, 9 × faster than `grid_sample` resamples a batch of floats on a CPU.
    cut = [
        resized_crop(image, *box, [height, width], InterpolationMode.BICUBIC, antialias=True)
        for image, box in zip(images, boxes, strict=True)
    ]
    whole = torch.stack(cut)
    return _flipped(whole, draws[4, :, 0] < 0.5) if mirror else whole


def randaug(images: torch.Tensor, generator: torch.Generator, operations: int = 2, magnitude: int = 9) -> torch.Tensor:
    """RandAugment (Cubuk et al., 2020) of each picture by itself, as torchvision does it, after `flip`."""
    return _rand_augmented(flip(images, generator), generator, operations, magnitude)


def randaug_crop(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """RandAugment of 4 operations and magnitude 7, as ST-Adapter and AIM train on SSv2, after a random crop; no mirror."""
    return _rand_augmented(crop_flip(images, generator, mirror=False), generator, 4, 7)


def _rand_augmented(images: torch.Tensor, generator: torch.Generator, operations: int, magnitude: int) -> torch.Tensor:
    from torchvision.transforms.v2 import RandAugment

    change = RandAugment(num_ops=operations, magnitude=magnitude)
    seed = int(torch.randint(1 << 62, (), generator=generator))
    with torch.random.fork_rng(devices=[]):  # torchvision draws from the global generator
        torch.manual_seed(seed)
        # frames of a clip lie one behind the other among the channels
        return torch.stack([change(image.unflatten(0, (-1, 3))).flatten(0, 1) for image in images])


AUGMENTATIONS: dict[str, Augmentation] = {
    "none": none,
    "flip": flip,
    "crop": partial(crop_flip, mirror=False),
    "crop_flip": crop_flip,
    "randaug": randaug,
    "randaug_crop": randaug_crop,
}
MIRRORING = frozenset(("flip", "crop_flip", "randaug"))
"""Those that mirror: not for data whose labels a mirror changes."""
