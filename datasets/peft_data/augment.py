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
    a name in `AUGMENTATIONS`. All frames of a clip are changed alike. What it does is
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
    whole = _resized(images, torch.stack([top, left, h, w], 1))
    return _flipped(whole, draws[4, :, 0] < 0.5) if mirror else whole


def _resized(images: torch.Tensor, boxes: torch.Tensor) -> torch.Tensor:
    """Parts `top, left, height, width` of the pictures, at the size of the whole.

    One by one: torch resizes bytes natively, 9 × faster than `grid_sample` resamples a batch of floats on a CPU."""
    from torchvision.transforms.v2 import InterpolationMode
    from torchvision.transforms.v2.functional import resized_crop

    size = list(images.shape[-2:])
    parts = zip(images, boxes.long().tolist(), strict=True)
    return torch.stack([resized_crop(one, *box, size, InterpolationMode.BICUBIC, antialias=True) for one, box in parts])


SIDES = (1.0, 0.875, 0.75, 0.66)
PLACES = tuple((y, x) for y in (0, 2, 4) for x in (0, 2, 4)) + ((1, 1), (1, 3), (3, 1), (3, 3))
"""Of a part in quarters of the room that it leaves: corners, middles of the sides, the centre, and between these."""


def multi_scale(images: torch.Tensor, generator: torch.Generator, mirror: bool = True) -> torch.Tensor:
    """TSN's crops (Wang et al., 2016), AdaptFormer's on clips: height and width are `SIDES` of the shorter side, at most one
    step apart, at one of thirteen `PLACES`; mirrored with probability one half, not without `mirror`."""
    count, _, height, width = images.shape
    pairs = [(h, w) for h in range(len(SIDES)) for w in range(len(SIDES)) if abs(h - w) <= 1]
    pair = torch.tensor(pairs)[torch.randint(len(pairs), (count,), generator=generator)]
    place = torch.tensor(PLACES)[torch.randint(len(PLACES), (count,), generator=generator)]
    turned = torch.rand(count, generator=generator) < 0.5
    size = (torch.tensor(SIDES)[pair] * min(height, width)).long()
    corner = (torch.tensor([height, width]) - size) // 4 * place
    whole = _resized(images, torch.cat([corner, size], 1))
    return _flipped(whole, turned) if mirror else whole


def jitter(images: torch.Tensor, generator: torch.Generator, most: float = 1.15, mirror: bool = True) -> torch.Tensor:
    """A square anywhere in each picture as if its shorter side had been scaled by a factor uniform in 1 to `most`: the side is
    1 / factor of it. ST-Adapter's crops; mirrored with probability one half, not without `mirror`."""
    count, _, height, width = images.shape
    draws = torch.rand(4, count, generator=generator, dtype=torch.float64)
    side = (min(height, width) / (1 + (most - 1) * draws[0])).round()
    top, left = (draws[1] * (height - side + 1)).floor(), (draws[2] * (width - side + 1)).floor()
    whole = _resized(images, torch.stack([top, left, side, side], 1))
    return _flipped(whole, draws[3] < 0.5) if mirror else whole


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
    "multi_scale": partial(multi_scale, mirror=False),
    "multi_scale_flip": multi_scale,
    "jitter": partial(jitter, mirror=False),
    "jitter_flip": jitter,
    "randaug": randaug,
    "randaug_crop": randaug_crop,
}
MIRRORING = frozenset(name for name in AUGMENTATIONS if name.endswith("flip") or name == "randaug")
"""Those that mirror: not for data whose labels a mirror changes."""
