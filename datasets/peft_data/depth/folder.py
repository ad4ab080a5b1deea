"""Folders of pictures and of depth maps with the same names (`peft_data.annotations.beside`)."""

from __future__ import annotations

from pathlib import Path

from peft_data.annotations.beside import given_pairs, places_in, refuse_other_sizes, split_pairs
from peft_data.base import ClassificationData
from peft_data.depth.maps import DepthData, Depths, is_map, size_of
from peft_data.errors import DataError
from peft_data.findings import with_findings

NAMES: dict[str, str] = {}
MAPS = ("depths", "depth", "depth_maps", "depthmaps", "maps", "labels", "annotations", "gt")
ALSO = ("_depth", "-depth")
"""What a map's name may have behind its picture's."""


def claims(path: Path) -> bool:
    """Whether it is a folder with folders of pictures and depth maps, itself or its folders for the splits."""
    return path.is_dir() and bool(places_in(path, MAPS))


def load(
    name: str, root: str | None, seed: int, *, scale: float = 1.0, val: float = 0.2, test: float = 0.2
) -> ClassificationData:
    """The folder `root`. Maps are 16-bit PNG, TIFF or .npy (`H W`); 0, negative and infinite numbers are not known and do not
    count. A map may be smaller than its picture, of the same form.

    Args:
        scale: how many of a file's numbers make a unit: 1000 of NYU's PNG a metre, 256 of KITTI's.
        val, test: their parts, where there are no splits.

    Raises:
        DataError: a picture without a map, a map of another form, or a scale that is none.
    """
    if not 0 < scale < float("inf"):
        raise DataError(f"the option 'scale' of {name} must be above 0, not {scale:g}")
    folder = Path(root or name).resolve()
    parts = given_pairs(places_in(folder, MAPS), ALSO, "depth map", is_map)
    three, drawn, notes = split_pairs(parts, folder, val, test, seed)
    whole = [pair for pairs in parts.values() for pair in pairs]
    refuse_other_sizes(whole, "depth map", size_of, _alike)
    data = DepthData(Path(name).stem, ("depth",), *three, maps=Depths([each for _, each in whole], scale))
    return with_findings(data, notes, drawn=drawn)


def _alike(picture: tuple[int, int], other: tuple[int, int]) -> bool:
    """Whether both are of one form, to a pixel of the smaller one."""
    small, large = sorted((picture, other))
    return abs(large[0] * small[1] - large[1] * small[0]) <= max(large)
