"""Reads a picture of any kind as 8-bit RGB, and brings it to one size."""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
import torch
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from peft_data.errors import DataError, nearest

T = TypeVar("T")
# What Pillow's decoders raise for files that are broken in one way or another.
UNREADABLE = (
    OSError, SyntaxError, ValueError, EOFError, IndexError, KeyError, TypeError, OverflowError, struct.error,
    zlib.error, Image.DecompressionBombError,
)  # fmt: skip
SUFFIXES = frozenset(
    ".jpg .jpeg .jpe .jfif .mpo .png .apng .bmp .dib .gif .webp .tif .tiff .ppm .pgm .pbm .pnm .tga .jp2 .j2k .avif .heic "
    ".heif .hif".split()
)
_HEIF = frozenset((b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"))


def is_picture(path: Path) -> bool:
    """Whether a file's name is that of a picture (and it is not hidden)."""
    return path.suffix.lower() in SUFFIXES and not path.name.startswith(".")


def read_picture(source: Path | Image.Image, least: tuple[int, int] | None = None) -> Image.Image:
    """The picture as 8-bit RGB, turned as its EXIF orientation says, transparent parts on white.

    16-bit grey is scaled to 8 bits (65535 → 255) rather than clipped; whole or real numbers without a known range are
    scaled by the smallest of 1, 255, 65535 and 2³²−1 that holds them.

    Args:
        least: height and width that suffice: a JPEG file may be decoded at a half, quarter or eighth of its own, but not below.

    Raises:
        UNREADABLE: the file is missing, truncated, or no picture; or HEIC, as iPhones write it, where pillow-heif is missing.
    """
    if isinstance(source, Image.Image):
        return _rgb(source)
    with open_picture(source) as image:
        if least is not None:
            height, width = least[::-1] if _lies(image) else least
            image.draft(image.mode, (width, height))
        image.load()
        return _rgb(image)


def own_size(path: Path) -> tuple[int, int]:
    """Height and width of a file's picture as it is shown, from its header.

    Raises:
        UNREADABLE: as `read_picture`, as far as the header shows.
    """
    with open_picture(path) as image:
        return (image.width, image.height) if _lies(image) else (image.height, image.width)


def size_or(path: Path, otherwise: T) -> tuple[int, int] | T:
    """`own_size`, or something else where the file's header cannot be read."""
    try:
        return own_size(path)
    except UNREADABLE:
        return otherwise


def _lies(image: Image.Image) -> bool:
    """Whether EXIF turns it by a quarter."""
    try:
        return image.getexif().get(ExifTags.Base.Orientation, 1) in (5, 6, 7, 8)
    except UNREADABLE:
        return False


def open_picture(source: Path) -> Image.Image:
    """As `Image.open`, HEIC included where pillow-heif is installed.

    Raises:
        UNREADABLE: as `read_picture`, as far as the file's beginning shows.
    """
    try:
        return Image.open(source)
    except UnidentifiedImageError:
        with open(source, "rb") as file:
            start = file.read(12)
        if start[4:8] != b"ftyp" or start[8:12] not in _HEIF:
            raise
    try:
        import pillow_heif  # type: ignore
    except ImportError as error:
        raise ValueError("is HEIC, which needs pillow-heif: pip install pillow-heif, or save it as JPEG") from error
    pillow_heif.register_heif_opener()
    return Image.open(source)


def _rgb(image: Image.Image) -> Image.Image:
    file_format = image.format  # a copy forgets it
    try:
        image = ImageOps.exif_transpose(image)
    except UNREADABLE:
        image.load()  # broken EXIF data does not make a picture unreadable; broken pixels do
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode.startswith(("I", "F")):
        return Image.fromarray(_eight_bits(image, file_format)).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")


def _eight_bits(image: Image.Image, file_format: str | None) -> np.ndarray:
    values = np.nan_to_num(np.asarray(image).astype(np.float64))
    top = values.max(initial=0)
    if image.mode.startswith("I;16") or (image.mode == "I" and file_format == "PNG"):
        full = 65535.0
    else:
        ranges = (1.0, 255.0, 65535.0) if image.mode == "F" else (255.0, 65535.0)
        full = next((full for full in ranges if top <= full), 2.0**32 - 1)
    return np.clip(np.rint(values * (255 / full)), 0, 255).astype(np.uint8)


PIL_MODES = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}


@dataclass(frozen=True)
class Fit:
    """How a picture comes to `size`.

    Args:
        size: height and width in pixels.
        mode: `squash` resizes to `size` directly, as VTAB-1k is used; `crop` makes the shorter side `size / crop_pct`
            and cuts the centre out, as ImageNet is evaluated.
        crop_pct: for `crop`, the part of the shorter side that stays.
        interpolation: `bicubic`, `bilinear`, `nearest` or `lanczos`.
    """

    size: tuple[int, int]
    mode: Literal["squash", "crop"] = "squash"
    crop_pct: float = 0.875
    interpolation: str = "bicubic"

    def __post_init__(self) -> None:
        if self.mode not in ("squash", "crop"):
            raise DataError(f"there is no mode {self.mode!r}{nearest(self.mode, ('squash', 'crop'))}: squash or crop")
        if self.interpolation not in PIL_MODES:
            near = nearest(self.interpolation, PIL_MODES)
            raise DataError(f"there is no interpolation {self.interpolation!r}{near}: one of {', '.join(PIL_MODES)}")
        if min(self.size) < 1 or not 0 < self.crop_pct <= 1:
            raise DataError(f"the size {self.size} must be at least 1 and crop_pct {self.crop_pct} in (0, 1]")

    @property
    def how(self) -> dict[str, Any]:
        """All but the size, by the names that decoding gives it."""
        return {"mode": self.mode, "crop_pct": self.crop_pct, "interpolation": self.interpolation}

    def boxes(self, height: int, width: int) -> tuple[tuple[int, int], tuple[int, int]]:
        """What to resize a picture to, and the top left corner of what is then cut out."""
        if self.mode == "squash":
            return self.size, (0, 0)
        # As timm and torchvision round: both sides of `size` are reached, the longer side is rounded down.
        h, w = (int(side / self.crop_pct) for side in self.size)
        if h * width <= w * height:
            h = int(w * height / width)
        else:
            w = int(h * width / height)
        h, w = max(h, self.size[0]), max(w, self.size[1])
        return (h, w), (round((h - self.size[0]) / 2), round((w - self.size[1]) / 2))

    def picture(self, image: Image.Image) -> np.ndarray:
        """An RGB picture as uint8 `3 H W`, resized as Pillow does."""
        (h, w), (top, left) = self.boxes(image.height, image.width)
        if image.size != (w, h):
            image = image.resize((w, h), PIL_MODES[self.interpolation])
        pixels = np.asarray(image)[top : top + self.size[0], left : left + self.size[1]]
        return pixels.transpose(2, 0, 1)

    def tensor(self, images: torch.Tensor) -> torch.Tensor:
        """Decoded pictures, uint8 `N 3 h w`, as uint8 `N 3 H W`, resized with antialiasing if needed."""
        (h, w), (top, left) = self.boxes(*images.shape[-2:])
        if tuple(images.shape[-2:]) != (h, w):
            images = _resize(images, (h, w), self.interpolation)
        return images[..., top : top + self.size[0], left : left + self.size[1]]


def _resize(images: torch.Tensor, size: tuple[int, int], interpolation: str, chunk: int = 256) -> torch.Tensor:
    from torchvision.transforms.v2 import InterpolationMode
    from torchvision.transforms.v2.functional import resize

    if interpolation == "lanczos":
        raise DataError("decoded pictures cannot be resized with lanczos: choose bicubic")
    how = InterpolationMode(interpolation)
    out = torch.empty(*images.shape[:-2], *size, dtype=torch.uint8)
    for start in range(0, len(images), chunk):
        out[start : start + chunk] = resize(images[start : start + chunk], list(size), how, antialias=how != "nearest")
    return out
