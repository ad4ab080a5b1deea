"""The files of this package that open data sets, and which of them knows a name."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

PATHS = ("./", "../", "/", "~")
"""What begins like this is a path, whatever data sets are called."""


def formats(first: str = "") -> Iterator[ModuleType]:
    """The files that have `NAMES`, the one that is called `first` before the others."""
    package = __name__.rpartition(".")[0]
    names = [info.name for info in pkgutil.iter_modules([str(Path(__file__).parent)])]
    for name in sorted(names, key=lambda name: (name != first, name)):
        module = importlib.import_module(f"{package}.{name}")
        if hasattr(module, "NAMES"):
            yield module


def named(data: str, module: ModuleType) -> str | None:
    """What a format calls a data set that it has by name (`ALIASES` resolved); None where it has none of that name."""
    if is_path(data):
        return None
    name = getattr(module, "ALIASES", {}).get(data, data)
    return name if any(_matches(name, known) for known in module.NAMES) else None


def is_path(data: str) -> bool:
    return data.startswith(PATHS) or data in (".", "..")


def _matches(name: str, known: str) -> bool:
    prefix, pattern, _ = known.partition("<")
    return name.startswith(prefix) and len(name) > len(prefix) if pattern else name == known
