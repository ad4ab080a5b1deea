"""Masks beside pictures, or in their alpha channels: how much each part of a picture weighs in its loss.

Where they lie: `photo-masklabel.png` beside `photo.jpg` (OneTrainer), a folder of masks with the pictures' names (kohya's
conditioning_data_dir), or the pictures' own alpha. White counts, black does not.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch.nn.functional as F
from peft_data.errors import listing
from peft_data.pictures import UNREADABLE, is_picture, open_picture, read_picture
from peft_data.walk import files_in
from PIL import Image, ImageOps
from torch import Tensor

from diffusion_peft.data.buckets import Crop, cut
from peft_core.errors import PeftError
from peft_core.jobs.runs.process import tell

BESIDE, ALPHA, OFF = "beside", "alpha", "off"
LABEL = "-masklabel"


def apart(files: Sequence[Path], masks: str) -> tuple[list[Path], dict[tuple[Path, str], Path]]:
    """The pictures among these files, and the masks that lie beside them, by folder and name of their pictures."""
    names = {(file.parent, file.stem) for file in files}
    found = {(file.parent, file.stem.removesuffix(LABEL)): file for file in files if file.stem.endswith(LABEL)}
    found = {place: file for place, file in found.items() if place in names}
    ours = {*found.values()}
    root = None if masks in (BESIDE, ALPHA, OFF) else Path(masks).expanduser().absolute()
    return [
        file for file in files if file not in ours and (root is None or not file.absolute().is_relative_to(root))
    ], found


def check_where(masks: str) -> None:
    """Raises PeftError: no such place; asked before anything heavy is loaded."""
    if masks not in (BESIDE, ALPHA, OFF) and not (masks and Path(masks).expanduser().is_dir()):
        raise PeftError(f"--masks {masks} must be beside, alpha, off, or a folder of masks.")


def find_masks(
    pictures: Sequence[Path], folder: Path, masks: str, labels: dict[tuple[Path, str], Path]
) -> list[Path | None]:
    """Each picture's mask: a file, the picture itself where its alpha channel is meant, or none.

    Args:
        masks: beside, alpha, off, or a folder.
        labels: what `apart` found.

    Raises:
        PeftError: a folder without masks for these pictures.
    """
    if masks == OFF:
        return [None] * len(pictures)
    if masks == BESIDE:
        return [labels.get((file.parent, file.stem)) for file in pictures]
    if masks == ALPHA:
        found: list[Path | None] = [file if _has_alpha(file) else None for file in pictures]
        if not any(found):
            raise PeftError(f"no picture of {folder} has an alpha channel: leave --masks alpha out.")
        return found
    check_where(masks)
    root = Path(masks).expanduser()
    by_name: dict[str, Path] = {}
    for file in files_in(root, is_picture):
        by_name[file.stem] = by_name[file.relative_to(root).with_suffix("").as_posix()] = file
    found = [
        by_name.get(file.relative_to(folder).with_suffix("").as_posix(), by_name.get(file.stem)) for file in pictures
    ]
    if not any(found):
        raise PeftError(f"no mask in {root} has the name of a picture of {folder}: call them as the pictures are.")
    return found


def check_masks(pictures: Sequence[Path], sizes: Sequence[tuple[int, int]], masks: Sequence[Path | None]) -> None:
    """Says how many pictures have one.

    Raises:
        PeftError: masks that cannot be read, are of another size than their pictures, or black all over.
    """
    if not any(masks):
        return
    wrong = []
    for picture, (height, width), mask in zip(pictures, sizes, masks, strict=True):
        if mask is None:
            continue
        try:
            image = read_mask(picture, mask)
        except UNREADABLE as error:
            wrong.append(f"{mask} (cannot be read: {str(error).partition(chr(10))[0]})")
            continue
        if image.size != (width, height):
            wrong.append(f"{mask} ({image.width} × {image.height}, and {picture.name} has {width} × {height})")
        elif image.getextrema()[1] == 0:
            wrong.append(f"{mask} (black all over, so that {picture.name} would teach nothing)")
    with_mask = sum(mask is not None for mask in masks)
    if wrong:
        raise PeftError(
            f"{len(wrong)} of {with_mask} masks do not fit their pictures, make them anew or take them out:{listing(wrong)}"
        )
    rest = "" if with_mask == len(masks) else f"; the other {len(masks) - with_mask} count as a whole"
    tell(
        f"note: {with_mask} of {len(masks)} pictures have masks, and their loss is that of the masks' white parts{rest}"
    )


def read_mask(picture: Path, mask: Path) -> Image.Image:
    """A mask in 8-bit grey, upright. Of a mask's own transparency nothing is read, as sd-scripts and OneTrainer do not."""
    with open_picture(mask) as image:
        if mask == picture:
            return ImageOps.exif_transpose(image).convert("RGBA").getchannel("A")
        if image.has_transparency_data:
            image = ImageOps.exif_transpose(image).convert("RGBA").convert("RGB")
        return read_picture(image).convert("L")


def weights_of(mask: Image.Image, crop: Crop, flip: bool, size: tuple[int, int], outside: float) -> Tensor:
    """1 h w: a mask as its picture is cut, averaged over each latent's pixels, `outside` at least.

    As sd-scripts' `apply_masked_loss` (mode "area") and, with `outside`, OneTrainer's `unmasked_weight`.
    """
    pixels = cut(mask.convert("RGB"), crop, flip, Image.Resampling.BILINEAR)[:1]
    return F.interpolate((pixels + 1)[None] / 2, size=size, mode="area")[0].clamp(min=outside)


def _has_alpha(file: Path) -> bool:
    with open_picture(file) as image:
        return image.has_transparency_data
