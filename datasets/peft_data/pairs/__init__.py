"""Pairs of picture and caption: one file a format, opened by name or path with `open_pairs`.

A file of this package that has `load(name, root, seed, **own options) -> PairData` is a format. `NAMES` are the names it
has, `claims(path)` says whether a path is of it, as in `peft_data`.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

from peft_data import load_with
from peft_data.errors import DataError, nearest
from peft_data.names import is_path, named
from peft_data.pairs.base import PairData, Pairs
from peft_data.splits import check_seed

__all__ = ["PairData", "Pairs", "list_pairs", "open_pairs", "pair_formats"]


def pair_formats() -> Iterator[ModuleType]:
    """The files that open pairs."""
    for info in sorted(pkgutil.iter_modules([str(Path(__file__).parent)]), key=lambda info: info.name):
        module = importlib.import_module(f"{__name__}.{info.name}")
        if hasattr(module, "load"):
            yield module


def list_pairs() -> dict[str, str]:
    """Every set of pairs that has a name, and one line about it."""
    return {name: about for module in pair_formats() for name, about in module.NAMES.items()}


def open_pairs(data: str, *, root: str | None = None, seed: int = 0, **options: object) -> PairData:
    """Opens pairs by their name (`world/pairs`, `hf/NAME`), or a table, a folder or a shard by its path. Nothing is decoded.

    Args:
        data: a name of `list_pairs()`, or a path to a .csv or .tsv table, a folder of pictures with captions beside them, or
            .tar shards of webdataset (one, a folder of them, or `shard-{000..012}.tar`).
        root: the folder that relative paths are relative to.
        seed: of splits that the data do not fix themselves.
        options: the format's own.

    Raises:
        DataError: an unknown name or option, nothing there, or whatever is wrong with the data.
    """
    check_seed(seed)
    where = None if root is None else str(Path(root).expanduser())
    for module in pair_formats():
        if name := named(data, module):
            return load_with(module, name, where, seed, options)
    path = Path(where or ".", Path(data).expanduser())
    for module in pair_formats():
        if hasattr(module, "claims") and module.claims(path):
            return load_with(module, path.name, str(path), seed, options)
    if path.exists():
        raise DataError(
            f"{path} holds no pairs of a known format: give a .csv with the columns path and caption, a folder of pictures with "
            "a .txt beside each, or .tar shards of webdataset"
        )
    if is_path(data) or "/" in data or "." in data:
        raise DataError(f"there is no file or folder {path}: check the path")
    raise DataError(f"there are no pairs {data!r}{nearest(data, list_pairs())}: known are {', '.join(list_pairs())}")
