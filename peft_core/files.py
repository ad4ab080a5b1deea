"""Files that are whole or not there, and what a killed writer leaves beside them."""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from peft_core.errors import PeftError

_TEMPORARY = re.compile(r"\..+\.\d+")
"""`.NAME.PROCESS`, the name of a file of `write_files` before it is complete."""


def write_files(folder: Path, files: Mapping[str, bytes]) -> None:
    """All of these files or none: each is complete on disk before the first takes its place.

    Raises:
        PeftError: the folder cannot be written.
    """
    temporary = {name: folder / f".{name}.{os.getpid()}" for name in files}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            with open(temporary[name], "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
        for name in files:
            os.replace(temporary[name], folder / name)
    except OSError as error:
        raise PeftError(
            f"cannot write to {folder} ({error.strerror or error}): what stood there is unchanged."
        ) from error
    finally:
        for path in temporary.values():
            path.unlink(missing_ok=True)


def read_weights(file: Path, command: str) -> dict[str, Tensor]:
    """Weights that ship with the package, in float32.

    Args:
        command: what trains them.

    Raises:
        PeftError: the file is missing or damaged.
    """
    try:
        return {name: value.float() for name, value in load_file(file).items()}
    except (OSError, SafetensorError) as error:
        raise PeftError(
            f"the reference weights {file} cannot be read ({error}); reinstall the package or train them again "
            f"with {command}"
        ) from error


def left_by_killed_writers(folder: Path) -> list[Path]:
    """The incomplete files of `write_files` in a folder that no process writes to now."""
    return [path for path in folder.iterdir() if _TEMPORARY.fullmatch(path.name)]


def is_used(folder: Path, own: Collection[str] = ()) -> bool:
    """Whether a folder exists and holds more than what killed writers leave and the names of `own`."""
    return folder.is_dir() and any(
        path.name not in own and not _TEMPORARY.fullmatch(path.name) for path in folder.iterdir()
    )


def cache_root() -> Path:
    """Where what can be made again is kept: $XDG_CACHE_HOME/visual-peft, else ~/.cache/visual-peft."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "visual-peft"
