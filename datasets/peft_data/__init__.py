"""Data sets for vision: one file a data set or folder format, opened by name or path with `open_data`.

A file of this package that has `NAMES` is such a file. Its contract:

- `NAMES: dict[str, str]`, name → one line about it. A name with a part in angle brackets stands for every name that
  begins so (`hf/<repo>`). Empty for a format that is known by its path alone.
- `load(name, root, seed, **own options) -> ClassificationData`; the options are keyword-only and typed. Opened by its
  path, `name` is the last part of the path and `root` the path. A set that lies in no folder has no `root`.
- `ALIASES: dict[str, str]`, optional: other spellings → the name.
- `claims(path) -> bool`, for a format that is known by its path: whether `path` is of this format, and of no other.

Formats of other tasks than classes (`names.TASKS`) stand in folders of their own, whose `WANTED` says in words what they read.
"""

from __future__ import annotations

import importlib
import inspect
import os
import types
import typing
from pathlib import Path
from types import ModuleType

from peft_data.base import ClassificationData, Pictures
from peft_data.errors import DataError, nearest
from peft_data.names import TASKS, formats, is_path, named, task_of
from peft_data.splits import check_seed
from peft_data.texts import is_utf8, shown

__all__ = ["ClassificationData", "DataError", "Pictures", "list_data", "open_data"]


def open_data(
    data: str, *, root: str | None = None, seed: int = 0, task: str = "classify", **options: object
) -> ClassificationData:
    """Opens a data set by its name (`digits`, `vtab/cifar100`), or a folder or file by its path.

    A name wins over a path; `./photos` forces the path. Nothing is decoded here.

    Args:
        data: a name of `list_data()`, or a path to class folders, `train/val/test` folders, a VTAB-1k task folder, a
            folder with FGVC json files, a folder with few-shot lists, a saved Hugging Face data set, or a `.csv` file.
        root: the folder that a named data set lies in; relative paths are relative to it.
        seed: of every split that the data set does not fix itself.
        task: what it is for, of `names.TASKS`: the same file may be read as classes, as sets of labels or as numbers.
        options: the data set's own, e.g. `shots=16`.

    Raises:
        DataError: an unknown name or option (with the nearest one), a missing folder (with how to get the data), or
            whatever is wrong with the data.
    """
    data = os.fspath(data)
    check_seed(seed)
    where = None if root is None else str(Path(root).expanduser())
    if task not in TASKS:
        raise DataError(f"there is no task {task!r}{nearest(task, TASKS)}: one of {', '.join(TASKS)}")
    for module in formats(data.split("/")[0], task):
        if name := named(data, module):
            return load_with(module, name, where, seed, options)
    if where is not None and Path(data).expanduser().is_absolute():
        raise DataError(f"{data} is a whole path, to which the root {root} adds nothing: leave the root out")
    path = Path(where or ".", Path(data).expanduser())
    if not is_utf8(str(path)):
        raise DataError(f"the name {shown(str(path))} is no UTF-8, so that no result could name it: rename it")
    if path.suffix.lower() in _ARCHIVES and path.is_file():
        raise DataError(f"{path} is an archive: unpack it and give the folder")
    if path.exists():
        for module in formats(task=task):
            if hasattr(module, "claims") and module.claims(path):
                return load_with(module, path.resolve().name, str(path), seed, options)
        raise DataError(f"{path} is no data set of a known format: give {_wanted(task)}")
    if is_path(data):
        raise DataError(f"there is no file or folder {path}: check the path")
    if other := task_of(data):
        raise DataError(f"{data} is a data set of the task {other}, not of {task}: give --task {other}")
    near = nearest(data, list_data())
    raise DataError(f"there is no data set and no folder {data!r}{near}: `list data` shows the names")


_ARCHIVES = (".zip", ".tar", ".gz", ".tgz", ".bz2", ".xz", ".7z", ".rar")
_OPTIONS = {"val": (0, 1), "test": (0, 1), "shots": (1, None), "list_seed": (0, None), "size": (1, 4096),
            "frames": (1, 4096), "stride": (1, 4096), "views": (1, 1024)}  # fmt: skip
"""Numbers that an option may have, wherever a format has it: the least and the most."""


def _wanted(task: str) -> str:
    """What a data set of a task looks like, in words."""
    if TASKS[task]:
        return importlib.import_module(f"{__name__}.{TASKS[task]}").WANTED
    return (
        "class folders with pictures, train/val/test folders, a VTAB-1k task folder, a folder with train.json, or a .csv "
        "file with the header path,label"
    )


def list_data() -> dict[str, str]:
    """Every data set that has a name, and one line about it."""
    return {name: about for module in formats() for name, about in module.NAMES.items()}


def load_with(module: ModuleType, name: str, root: str | None, seed: int, options: dict) -> typing.Any:
    """What a format's `load` gives for options that it has.

    Raises:
        DataError: an option that is none of its own, or a value that it cannot have.
    """
    parameters = inspect.signature(module.load).parameters
    known = [p.name for p in parameters.values() if p.kind is p.KEYWORD_ONLY]
    hints = typing.get_type_hints(module.load)
    for option, value in options.items():
        if option not in known:
            has = f"its options are {', '.join(known)}" if known else "it has none"
            raise DataError(f"{name} has no option {option!r}{nearest(option, known)}: {has}")
        if not _fits(value, hints[option]):
            wanted = getattr(hints[option], "__name__", None) or str(hints[option]).replace("typing.", "")
            raise DataError(f"the option {option!r} of {name} must be {wanted}, not {value!r}")
        least, most = _OPTIONS.get(option, (None, None))
        if isinstance(value, (int, float)) and not isinstance(value, bool) and least is not None:
            if not (value >= least and (most is None or value <= most)):
                upto = f"{least} to {most:g}" if most is not None else f"{least} or more"
                raise DataError(f"the option {option!r} of {name} must be {upto}, not {value:g}")
    if "root" in parameters:
        return module.load(name, root, seed, **options)
    if root is not None:
        raise DataError(f"{name} lies in no folder: leave the root {root} out")
    return module.load(name, seed=seed, **options)


def _fits(value: object, hint: object) -> bool:
    origin = typing.get_origin(hint)
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, part) for part in typing.get_args(hint))
    if origin is typing.Literal:
        return value in typing.get_args(hint)
    if isinstance(value, bool):
        return hint is bool
    if hint is float:
        return isinstance(value, (int, float))
    return isinstance(value, hint) if isinstance(hint, type) else True
