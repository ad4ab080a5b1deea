"""Conditions by name, and how each is computed from a picture where it is not given."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image, ImageFilter

from peft_core.errors import PeftError, nearest

CONDITIONS = {
    "canny": "edges, by OpenCV",
    "scribble": "thick, coarse edges, by OpenCV",
    "mask": "a colour for each class; must be given",
    "depth": "near is bright, by Intel/dpt-hybrid-midas",
    "normal": "which way surfaces face, from the depth",
    "pose": "joints of one person, by usyd-community/vitpose-base-simple",
    "colour": "mean colours of 8 × 8 squares",
    "box": "boxes with phrases; must be given",
    "picture": "the picture itself, as a prompt",
}
DEPTH, POSE = "Intel/dpt-hybrid-midas", "usyd-community/vitpose-base-simple"


def check_condition(name: str) -> str:
    """Raises PeftError: there is no condition of this name."""
    if name not in CONDITIONS:
        raise PeftError(f'unknown condition "{name}"{nearest(name, CONDITIONS)} (known: {", ".join(CONDITIONS)}).')
    return name


def compute(name: str, picture: Image.Image) -> Image.Image:
    """The condition of that name of an RGB picture, as RGB of the same size.

    Raises:
        PeftError: an unknown name, one that must be given, a model or a library that cannot be had.
    """
    maker = _MAKERS.get(check_condition(name))
    if maker is None:
        raise PeftError(f"a {name} cannot be computed from a picture: give it (conditions/ beside images/).")
    return maker(picture)


def canny(picture: Image.Image, low: int = 100, high: int = 200) -> Image.Image:
    """White edges on black: OpenCV's detector with the thresholds that ControlNet was trained with."""
    return Image.fromarray(_cv2().Canny(np.asarray(picture.convert("L")), low, high)).convert("RGB")


def scribble(picture: Image.Image) -> Image.Image:
    """Edges of the blurred picture, made thick."""
    blurred = picture.filter(ImageFilter.GaussianBlur(max(picture.size) / 128))
    return canny(blurred, 50, 120).filter(ImageFilter.MaxFilter(3))


def colour(picture: Image.Image) -> Image.Image:
    small = picture.resize((8, 8), Image.Resampling.BOX)
    return small.resize(picture.size, Image.Resampling.NEAREST)


def normal(picture: Image.Image) -> Image.Image:
    """Normals (x, y, z) of the depth's slope, z towards the viewer."""
    near = np.asarray(depth(picture).convert("L")).astype(np.float32) / 255 * 16
    down, right = np.gradient(near)
    vector = np.stack([-right, -down, np.ones_like(near)], -1)
    vector /= np.linalg.norm(vector, axis=-1, keepdims=True)
    return Image.fromarray(((vector + 1) * 127.5).round().astype(np.uint8))


def depth(picture: Image.Image) -> Image.Image:
    from diffusion_peft.control.estimators import estimate_depth

    return estimate_depth(picture, DEPTH)


def pose(picture: Image.Image) -> Image.Image:
    from diffusion_peft.control.estimators import estimate_pose

    return estimate_pose(picture, POSE)


def same(picture: Image.Image) -> Image.Image:
    return picture


_MAKERS: dict[str, Callable[[Image.Image], Image.Image]] = {
    "canny": canny, "scribble": scribble, "depth": depth, "normal": normal, "pose": pose, "colour": colour, "picture": same,
}  # fmt: skip


def _cv2() -> Any:
    try:
        import cv2
    except ImportError as error:
        raise PeftError(
            "edges of pictures need OpenCV: pip install 'visual-peft[control]', or give the edges in conditions/."
        ) from error
    return cv2
