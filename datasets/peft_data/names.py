"""The files of this package that open data sets, and which of them knows a name."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

PATHS = ("./", "../", "/", "~")
"""What begins like this is a path, whatever data sets are called."""


TASKS = {
    "classify": "",
    "multi_label": "multi_label",
    "regression": "regression",
    "segment": "segment",
    "depth": "depth",
    "detect": "detect",
}
"""What a model can be trained for → the folder of this package with the formats of its data."""


def formats(first: str = "", task: str | None = None) -> Iterator[ModuleType]:
    """The files that have `NAMES`, of one task or of all, the one that is called `first` before the others."""
    home = __name__.rpartition(".")[0]
    for inside in TASKS.values() if task is None else [TASKS[task]]:
        package = f"{home}.{inside}" if inside else home
        names = [info.name for info in pkgutil.iter_modules([str(Path(__file__).parent / inside)])]
        for name in sorted(names, key=lambda name: (name != first, name)):
            module = importlib.import_module(f"{package}.{name}")
            if hasattr(module, "NAMES"):
                yield module


def task_of(data: str) -> str | None:
    """The task of a data set that has this name; None where none has."""
    return next((task for task in TASKS if any(named(data, module) for module in formats(task=task))), None)


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
