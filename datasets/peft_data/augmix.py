"""AugMix of single views, as test-time methods of CLIP use it.

Hendrycks et al., "AugMix: A Simple Data Processing Method to Improve Robustness and Uncertainty", ICLR 2020; operations, severity
1 and what is mixed as in azshue/TPT, data/datautils.py and data/augmix_ops.py.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from PIL import Image, ImageOps

Chance = np.random.RandomState
Operation = Callable[[Image.Image, Chance], Image.Image]
CHAINS, LONGEST, SEVERITY = 3, 3, 1.0


def mixed(image: Image.Image, chance: Chance) -> np.ndarray:
    """m x + (1 − m) Σ w_i x_i, float32 h w 3 from 0 to 255: x_i the picture after one to three drawn operations, w from a
    Dirichlet distribution and m from a uniform one."""
    weights = chance.dirichlet([1.0] * CHAINS).astype(np.float32)
    kept = np.float32(chance.beta(1.0, 1.0))
    mix = np.zeros((image.height, image.width, 3), np.float32)
    for weight in weights:
        changed = image.copy()
        for _ in range(chance.randint(1, LONGEST + 1)):
            changed = OPERATIONS[chance.choice(len(OPERATIONS))](changed, chance)
        mix += weight * np.asarray(changed, np.float32)
    return kept * np.asarray(image, np.float32) + (1 - kept) * mix


def augmix(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Each picture mixed by itself, uint8 `B 3 H W`; a clip's frames, one behind the other among the channels, alike."""
    found = []
    for image in images:
        seed = int(torch.randint(2**32, (), generator=generator))
        frames = [each.permute(1, 2, 0).contiguous().cpu().numpy() for each in image.split(3)]
        pixels = [np.rint(mixed(Image.fromarray(each), Chance(seed))).clip(0, 255).astype(np.uint8) for each in frames]
        found.append(torch.cat([torch.from_numpy(each).permute(2, 0, 1) for each in pixels]))
    return torch.stack(found).to(images.device)


def _level(chance: Chance, most: float) -> float:
    return chance.uniform(0.1, SEVERITY) * most / 10


def _signed(chance: Chance, value: float) -> float:
    return -value if chance.uniform() > 0.5 else value


def _moved(image: Image.Image, *matrix: float) -> Image.Image:
    return image.transform(image.size, Image.Transform.AFFINE, matrix, resample=Image.Resampling.BILINEAR)


def _autocontrast(image: Image.Image, chance: Chance) -> Image.Image:
    return ImageOps.autocontrast(image)


def _equalise(image: Image.Image, chance: Chance) -> Image.Image:
    return ImageOps.equalize(image)


def _posterise(image: Image.Image, chance: Chance) -> Image.Image:
    return ImageOps.posterize(image, 4 - int(_level(chance, 4)))


def _rotate(image: Image.Image, chance: Chance) -> Image.Image:
    degrees = int(_level(chance, 30))
    return image.rotate(_signed(chance, degrees), resample=Image.Resampling.BILINEAR)


def _solarise(image: Image.Image, chance: Chance) -> Image.Image:
    return ImageOps.solarize(image, 256 - int(_level(chance, 256)))


def _shear_x(image: Image.Image, chance: Chance) -> Image.Image:
    return _moved(image, 1, _signed(chance, _level(chance, 0.3)), 0, 0, 1, 0)


def _shear_y(image: Image.Image, chance: Chance) -> Image.Image:
    return _moved(image, 1, 0, 0, _signed(chance, _level(chance, 0.3)), 1, 0)


def _shift_x(image: Image.Image, chance: Chance) -> Image.Image:
    return _moved(image, 1, 0, _signed(chance, int(_level(chance, image.width / 3))), 0, 1, 0)


def _shift_y(image: Image.Image, chance: Chance) -> Image.Image:
    return _moved(image, 1, 0, 0, 0, 1, _signed(chance, int(_level(chance, image.height / 3))))


OPERATIONS: tuple[Operation, ...] = (
    _autocontrast, _equalise, _posterise, _rotate, _solarise, _shear_x, _shear_y, _shift_x, _shift_y,
)  # fmt: skip
