"""Drawn pictures kept on disk as uint8, so that each task is drawn once."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from peft_data.base import Pictures
from peft_data.errors import DataError
from peft_data.reach import cache_root


def folder() -> Path:
    """Where drawn data is kept: `$PEFT_DATA_CACHE`, else `cache_root`."""
    return Path(os.environ.get("PEFT_DATA_CACHE") or cache_root()).expanduser()


def drawn_splits(
    key: str, splits: Mapping[str, int], draw: Callable[[str, int], tuple[torch.Tensor, torch.Tensor]]
) -> list[Pictures]:
    """The splits' pictures and labels under `key`, drawn by `draw(split, its number)` if they are not there; see `cached`."""

    def make() -> dict[str, torch.Tensor]:
        out = {}
        for split, count in splits.items():
            out[split], out[f"{split}.labels"] = draw(split, count)
        return out

    kept = cached(key, make)
    return [Pictures(kept[split], kept[f"{split}.labels"], split=split) for split in splits]


def cached(
    key: str, make: Callable[[], dict[str, torch.Tensor]], where: str | os.PathLike | None = None
) -> dict[str, torch.Tensor]:
    """The tensors under `key`, made and stored if they are not there. A damaged file is made again.

    Args:
        key: path below the cache folder, without suffix; it must hold whatever the tensors depend on.
        make: gives the tensors by name.
        where: another cache folder.

    Raises:
        DataError: the cache folder cannot be written (no space, no permission).
    """
    path = (folder() if where is None else Path(where).expanduser()) / f"{key}.safetensors"
    if path.is_file():
        try:
            return load_file(path)
        except (SafetensorError, OSError):
            with contextlib.suppress(OSError):  # where the folder cannot be written this is told below
                path.unlink(missing_ok=True)
    tensors = {name: value.contiguous() for name, value in make().items()}
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, suffix=".part")
        os.close(handle)
        save_file(tensors, temporary)
        os.replace(temporary, path)
    except (OSError, SafetensorError) as error:
        if temporary:
            Path(temporary).unlink(missing_ok=True)
        need = sum(value.nbytes for value in tensors.values()) / 1e6
        raise DataError(
            f"cannot keep {need:.0f} MB in {path.parent}: {error}; free some space or name another folder "
            "(PEFT_DATA_CACHE, or cache_dir)"
        ) from error
    return tensors
