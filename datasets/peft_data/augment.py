"""Augmentation and normalisation of pictures; chance comes from a generator alone.

An augmentation that takes a part of a picture takes it from the file's own frame: `peft_data.frames` and the batches of
clips cut it (`Augment.parts`, `before`, `mirror`), and what is left, `Augment.then`, is done to the batch. On pictures
that are decoded already `augmentation` does all of it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from PIL import Image

from peft_data.augmix import augmix
from peft_data.crops import PLACES, SIDES, Parts, jitter_part, multi_scale_part, random_part, scaled
from peft_data.errors import DataError, nearest
from peft_data.rand_augment import Change, drawn_changes

__all__ = ["AUGMENTATIONS", "MIRRORING", "PLACES", "SIDES", "augment_of", "augmentation", "normalise"]

Augmentation = Callable[[torch.Tensor, torch.Generator], torch.Tensor]


@dataclass(frozen=True)
class Augment:
    """What is done to a training picture, in this order.

    Args:
        about: one line.
        before: draws changes of the whole frame.
        parts: draws a part of each frame, which is brought to the model's size; None leaves the whole, as in evaluation.
        mirror: then mirrored left to right with probability one half.
        then: a change of the batch, uint8 `B 3 H W`, by the name of another augmentation.
        change: a change of the batch itself, for one that takes no part.
    """

    about: str
    before: Callable[[torch.Generator], list[Change]] | None = None
    parts: Parts | None = None
    mirror: bool = False
    then: str = "none"
    change: Augmentation | None = None

    @property
    def cuts(self) -> bool:
        """Whether it needs the file's own frame."""
        return self.parts is not None

    def __call__(self, images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        if images.ndim == 5:  # all frames of a clip are changed alike: they lie one behind the other among the channels
            return self(images.flatten(1, 2), generator).unflatten(1, (-1, 3))
        if self.change is not None:
            return self.change(images, generator)
        if self.before is not None:
            images = torch.stack([_changed(image, self.before(generator)) for image in images])
        if self.parts is not None:
            images = _parts_of(images, self.parts, self.mirror, generator)
        return images if self.then == "none" else AUGMENTATIONS[self.then](images, generator)


def augment_of(name: str) -> Augment:
    """The augmentation of that name.

    Raises:
        DataError: an unknown name.
    """
    if name not in AUGMENTATIONS:
        known = ", ".join(AUGMENTATIONS)
        raise DataError(f"there is no augmentation {name!r}{nearest(name, AUGMENTATIONS)}: one of {known}")
    return AUGMENTATIONS[name]


def augmentation(name: str) -> Augmentation:
    """A function of a batch (uint8 `B 3 H W`, or clips `B T 3 H W`) and a CPU generator, giving a batch of the same kind:
    a name in `AUGMENTATIONS`. All frames of a clip are changed alike. What it does is
    a function of the generator's state, on whichever device the batch is.

    Raises:
        DataError: an unknown name.
    """
    return augment_of(name)


def changed(images: Sequence[Image.Image], changes: Sequence[Change]) -> list[Image.Image]:
    """Pictures after the same changes, each once however often it stands there."""
    done: dict[int, Image.Image] = {}
    for image in images:
        if id(image) not in done:
            new = image
            for change in changes:
                new = change(new)
            done[id(image)] = new
    return [done[id(image)] for image in images]


def _changed(image: torch.Tensor, changes: Sequence[Change]) -> torch.Tensor:
    frames = [Image.fromarray(frame.permute(1, 2, 0).contiguous().cpu().numpy()) for frame in image.split(3)]
    done = [torch.from_numpy(np.asarray(frame).transpose(2, 0, 1).copy()) for frame in changed(frames, changes)]
    return torch.cat(done).to(image.device)


def _parts_of(images: torch.Tensor, parts: Parts, mirror: bool, generator: torch.Generator) -> torch.Tensor:
    """Parts of pictures of one size, at the size of the whole."""
    height, width = images.shape[-2:]
    heights, widths = (torch.full((len(images),), side, dtype=torch.int64) for side in (height, width))
    boxes = parts(heights, widths, generator).tolist()
    pieces = [image[..., t : t + h, left : left + w] for image, (t, left, h, w) in zip(images, boxes, strict=True)]
    whole = torch.stack([scaled(piece, (height, width)) for piece in pieces])
    return flip(whole, generator) if mirror else whole


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
    """A random part of each decoded picture (`random_part`), mirrored with probability one half (not without `mirror`),
    brought back to the whole size (bicubic)."""
    return _parts_of(images, partial(random_part, scale=scale, ratio=ratio), mirror, generator)


def multi_scale(images: torch.Tensor, generator: torch.Generator, mirror: bool = True) -> torch.Tensor:
    """As `crop_flip`, with `multi_scale_part`."""
    return _parts_of(images, multi_scale_part, mirror, generator)


def jitter(images: torch.Tensor, generator: torch.Generator, most: float = 1.15, mirror: bool = True) -> torch.Tensor:
    """As `crop_flip`, with `jitter_part`."""
    return _parts_of(images, partial(jitter_part, most=most), mirror, generator)


def randaug(images: torch.Tensor, generator: torch.Generator, operations: int = 2, magnitude: int = 9) -> torch.Tensor:
    """RandAugment (Cubuk et al., 2020) of each picture by itself, as torchvision does it, after `flip`."""
    return _rand_augmented(flip(images, generator), generator, operations, magnitude)


def _rand_augmented(images: torch.Tensor, generator: torch.Generator, operations: int, magnitude: int) -> torch.Tensor:
    from torchvision.transforms.v2 import RandAugment

    change = RandAugment(num_ops=operations, magnitude=magnitude)
    seed = int(torch.randint(1 << 62, (), generator=generator))
    with torch.random.fork_rng(devices=[]):  # torchvision draws from the global generator
        torch.manual_seed(seed)
        # frames of a clip lie one behind the other among the channels
        return torch.stack([change(image.unflatten(0, (-1, 3))).flatten(0, 1) for image in images])


_HALF = partial(random_part, scale=(0.5, 1.0))
AUGMENTATIONS: dict[str, Augment] = {
    "none": Augment("the picture as it is evaluated", change=none),
    "flip": Augment("mirrored", change=flip),
    "crop": Augment("a part of 8 to 100 % of the area", parts=random_part),
    "crop_flip": Augment("a part of 8 to 100 % of the area, mirrored", parts=random_part, mirror=True),
    "crop_half_flip": Augment("a part of 50 to 100 %, mirrored: Tip-Adapter's views", parts=_HALF, mirror=True),
    "multi_scale": Augment("TSN's parts: AdaptFormer on clips", parts=multi_scale_part),
    "multi_scale_flip": Augment("TSN's parts, mirrored", parts=multi_scale_part, mirror=True),
    "jitter": Augment("squares of 87 to 100 % of the side: ST-Adapter on Kinetics", parts=jitter_part),
    "jitter_flip": Augment("these squares, mirrored", parts=jitter_part, mirror=True),
    "randaug": Augment("mirrored, then RandAugment of 2 operations and magnitude 9 of 30", change=randaug),
    "randaug_four": Augment("RandAugment of 4 operations and magnitude 7 of 30",
                        change=partial(_rand_augmented, operations=4, magnitude=7)),
    "randaug_crop": Augment("a part, then RandAugment of 4 operations and magnitude 7 of 30: AIM on SSv2",
                            parts=random_part, then="randaug_four"),
    "timm_randaug_crop": Augment("timm's rand-m7-n4-mstd0.5-inc1 (7 of 10) on the whole frame, then a part: ST-Adapter on SSv2",
                                 before=drawn_changes, parts=random_part),
    "augmix": Augment("AugMix of severity 1", change=augmix),
    "augmix_crop_flip": Augment("a part of 8 to 100 %, mirrored, then AugMix: TPT's views of fine-grained sets",
                                parts=random_part, mirror=True, then="augmix"),
}  # fmt: skip
MIRRORING = frozenset(name for name in AUGMENTATIONS if name.endswith("flip") or name == "randaug")
"""Those that mirror: not for data whose labels a mirror changes."""
