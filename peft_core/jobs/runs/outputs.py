"""Where commands that use a run write to: never over what the run consists of."""

from __future__ import annotations

from pathlib import Path

from peft_core.errors import PeftError
from peft_core.jobs.runs.folder import FILES


def out_file(out: str, suffix: str, run: str) -> Path:
    """The file that a command writes.

    Raises:
        PeftError: another ending, a folder, or a file that the run itself consists of.
    """
    path = Path(out).expanduser()
    if path.suffix != suffix:
        raise PeftError(f"--out {out} must end in {suffix}.")
    if path.is_dir():
        raise PeftError(f"{path} is a folder: give a file name.")
    _outside(path, run)
    return path


def _outside(path: Path, run: str) -> None:
    """Raises PeftError: the path is one of the run's own files or folders, or lies within such a folder."""
    folder = Path(run).expanduser().resolve()
    inside = path.resolve().relative_to(folder).parts if path.resolve().is_relative_to(folder) else None
    if inside is not None and (not inside or inside[0] in FILES):
        raise PeftError(f"{path} is a file of the run itself: give --out another place.")


def out_folder(out: str, run: str | None) -> Path:
    """The folder that a command writes files to.

    Raises:
        PeftError: a file, or the run's own folder of adapters or the run itself.
    """
    path = Path(out).expanduser()
    if path.exists() and not path.is_dir():
        raise PeftError(f"{path} is a file: give --out a folder.")
    if run is not None:
        _outside(path, run)
    return path
