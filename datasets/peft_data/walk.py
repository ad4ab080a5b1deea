"""The files of a folder that count: what every folder that a user gives is searched through with.

Links are followed, each folder once. Passed over are hidden files and folders, what systems and programs leave behind
(`.ipynb_checkpoints`, `__MACOSX`, `Thumbs.db`), the folders of this software's own runs and sweeps, dangling links and
what is no file (pipes, devices). What is left out for another reason than being hidden is counted in `LeftOut`.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from peft_data.errors import DataError
from peft_data.texts import is_utf8, shown

SYSTEM = frozenset(
    ("__macosx", "__pycache__", "@eadir", "$recycle.bin", "system volume information", "lost+found", "thumbs.db",
     "desktop.ini")
)  # fmt: skip
"""What systems and programs leave in folders, in small letters; names that begin with a dot count as hidden too."""
_COMMAND = re.compile(rb"^\s*[\"']?command[\"']?\s*:\s*[\"']?(vision|clip|diffusion)_peft[ \t]+\w", re.MULTILINE)


@dataclass
class LeftOut:
    """What a search passed over: how many files for each reason, which reasons in which class folders.

    `kinds` counts files that are not of the wanted kind by their suffix, `links` dangling links, `pipes` what is no file,
    `runs` the folders of runs and sweeps.
    """

    kinds: Counter[str] = field(default_factory=Counter)
    links: list[Path] = field(default_factory=list)
    pipes: list[Path] = field(default_factory=list)
    runs: list[Path] = field(default_factory=list)

    @property
    def count(self) -> int:
        """Files and links that were left out; a run's folder counts as none."""
        return self.kinds.total() + len(self.links) + len(self.pipes)

    def notes(self, root: Path, what: str = "pictures") -> list[str]:
        """One line for files, one for runs; none where nothing was left out."""
        parts = [f"{n} {suffix or 'without a suffix'}" for suffix, n in self.kinds.most_common(6)]
        if (more := self.kinds.total() - sum(n for _, n in self.kinds.most_common(6))) > 0:
            parts.append(f"{more} others")
        if self.links:
            parts.append(f"{_of(self.links, 'dangling link', root)}")
        if self.pipes:
            parts.append(f"{_of(self.pipes, 'pipe or device', root)}")
        lines = []
        if self.count:
            are = "file is" if self.count == 1 else "files are"
            lines.append(f"{self.count} {are} left out, being no {what} that can be read: {', '.join(parts)}")
        if self.runs:
            lines.append(f"{_of(self.runs, 'folder', root)} of runs or sweeps left out")
        return lines


def _of(paths: list[Path], what: str, root: Path) -> str:
    first = paths[0].relative_to(root).as_posix() if paths[0].is_relative_to(root) else str(paths[0])
    return f"{len(paths)} {what}{'' if len(paths) == 1 else 's'} ({shown(first)}{'' if len(paths) == 1 else ' …'})"


def is_hidden(name: str) -> bool:
    """Whether a file or folder of that name counts nowhere: it begins with a dot, or a system made it."""
    return name.startswith(".") or name.lower() in SYSTEM


def is_run(folder: Path) -> bool:
    """Whether it is the folder of a run or sweep of this software: its config.yaml says which command made it."""
    try:
        with open(folder / "config.yaml", "rb") as file:
            return bool(_COMMAND.search(file.read(1 << 16)))
    except OSError:
        return False


def folders_in(folder: Path, left_out: LeftOut | None = None) -> list[Path]:
    """The folders directly in a folder that count, linked ones too, in the order of their names.

    Raises:
        DataError: the folder cannot be read, it is a run's own, or a name in it is no UTF-8.
    """
    _no_run(folder)
    found = []
    for entry in _entries(folder):
        if is_hidden(entry.name) or _kind(entry) != "folder":
            continue
        path = folder / entry.name
        if is_run(path):
            if left_out is not None:
                left_out.runs.append(path)
            continue
        found.append(_written(path))
    return found


def files_in(folder: Path, wanted: Callable[[Path], bool], left_out: LeftOut | None = None) -> list[Path]:
    """The files of a folder that count and are `wanted` (a function of the path alone), at any depth, in the order of their
    paths.

    Args:
        left_out: counts what is passed over.

    Raises:
        DataError: the folder cannot be read, it is a run's own, or a wanted file's name is no UTF-8.
    """
    found = (path for inside, names in walk(folder, left_out) for path in _chosen(inside, names, wanted, left_out))
    return sorted(map(_written, found))


def walk(folder: Path, left_out: LeftOut | None = None) -> Iterator[tuple[Path, list[str]]]:
    """The folders that count from `folder` on, itself the first, each with the names of its files; in order.

    Raises:
        DataError: a folder cannot be read, or `folder` is a run's own.
    """
    _no_run(folder)
    above = (path.stat() for path in folder.resolve().parents)
    seen = {(state.st_dev, state.st_ino) for state in above}
    waiting = [folder] if folder.is_dir() else []
    while waiting:
        inside = waiting.pop()
        state = inside.stat()
        if (state.st_dev, state.st_ino) in seen:  # a link to what was walked through already, or upwards
            continue
        seen.add((state.st_dev, state.st_ino))
        names, deeper = [], []
        for entry in _entries(inside):
            path, kind = inside / entry.name, _kind(entry)
            if is_hidden(entry.name):
                continue
            if kind == "file":
                names.append(entry.name)
            elif kind == "folder" and not is_run(path):
                deeper.append(path)
            elif left_out is not None:
                {"folder": left_out.runs, "link": left_out.links, "pipe": left_out.pipes}[kind].append(path)
        yield inside, names
        waiting += reversed(deeper)


def _chosen(inside: Path, names: list[str], wanted: Callable[[Path], bool], left_out: LeftOut | None) -> Iterator[Path]:
    for name in names:
        path = inside / name
        if wanted(path):
            yield path
        elif left_out is not None:
            left_out.kinds[path.suffix.lower()] += 1


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        raise DataError(
            f"the folder {shown(str(folder))} cannot be read ({error.strerror or error}): give leave to read it, or take "
            "it out"
        ) from error


def _kind(entry: os.DirEntry[str]) -> Literal["file", "folder", "link", "pipe"]:
    """What an entry is, links followed; `link` leads nowhere or in a circle, `pipe` is a pipe, a socket or a device."""
    try:
        if entry.is_file():
            return "file"
        if entry.is_dir():
            return "folder"
    except OSError:
        return "link"
    return "link" if entry.is_symlink() else "pipe"


def _no_run(folder: Path) -> None:
    if is_run(folder):
        raise DataError(
            f"{shown(str(folder))} is the folder of a run or sweep, not of data: give the folder that holds the data"
        )


def _written(path: Path) -> Path:
    if not is_utf8(path.name):
        raise DataError(
            f"the name {shown(str(path))} is no UTF-8, so that no result could name it: rename it (convmv does many at once)"
        )
    return path
