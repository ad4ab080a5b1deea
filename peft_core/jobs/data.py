"""`--data NAME`: a data set with its own options, opened once, and its splits as decoded pictures."""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

from peft_data import ClassificationData, open_data
from peft_data.base import Pictures
from peft_data.cache import check_decoding
from peft_data.cache_file import fingerprint as of_split
from peft_data.frames import decode_for_training
from peft_data.names import TASKS, formats, named
from peft_data.options import takes
from peft_data.video.clips import Clips
from peft_data.video.frames import decode_clips_for_training

from peft_core.errors import PeftError
from peft_core.files import must_encode
from peft_core.jobs.cli.options import Choice
from peft_core.jobs.runs.process import tell
from peft_core.jobs.runs.saying import Row, few, waiting
from peft_core.values import Seed, Whole, defaults_of


def common(
    root: str | None = None,
    *,
    seed: Seed = 0,
    on_bad_image: Literal["raise", "skip"] = "raise",
    cache_dir: str | None = None,
    workers: Whole = 0,
) -> None:
    """Options of every data set.

    Args:
        root: The folder that a named data set lies in.
        seed: Of splits that the data set does not fix itself.
        on_bad_image: Stop and list unreadable pictures, or go on without them.
        cache_dir: Folder that keeps decoded pictures for the next run.
        workers: Threads that decode; 0 is one a processor.
    """


DECODING = ("on_bad_image", "cache_dir", "workers")


@dataclass
class Data(Choice):
    """`--data vtab/cifar100 --data.root ~/vtab-1k`: the options are those of the format's `load`, and `common`.

    Args:
        task: what it is read for, of `peft_data.names.TASKS`.
    """

    task: str = "classify"

    @classmethod
    def accepts(cls, name: str) -> Callable:
        loads = [module.load for module in formats() if _is_of(name, module)]
        loads = loads or [module.load for module in formats() if hasattr(module, "claims")]

        @takes(common, *loads, but=("name",))
        def options(**given: Any) -> None:
            """Options of the data set."""

        return options

    def check(self) -> None:
        if not self.name.strip():
            raise PeftError("--data is empty: give a data set (`list data`) or a folder of pictures.")

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> Data:
        """The data set of a run."""
        options = {key: value for key, value in config["data"].items() if key != "name"}
        return cls(config["data"]["name"], options, config.get("task", "classify"))

    def of_task(self, task: str) -> Data:
        """The same, read for another task; options of formats that are no task's own are left out where nobody gave them."""
        kept = dict(self.options)
        own = {key for module in formats(task=task) for key in inspect.signature(module.load).parameters}
        others = TASKS if kept.keys() - own - set(DECODING) else ()  # asking them what they claim reads files
        for other in others:
            for module in formats(task=other) if other != task else ():
                if _is_of(self.name, module):
                    defaults = defaults_of(module.load)
                    kept = {key: value for key, value in kept.items() if key in own or defaults.get(key, kept) != value}
        return Data(self.name, kept, task)

    def absolute(self) -> Data:
        """The same with its paths made absolute, so that it can be opened from another folder later."""
        options, name, root = dict(self.options), self.name, self.options.get("root")
        if root:
            options["root"] = str(Path(root).expanduser().absolute())
        elif Path(name).expanduser().exists() and not any(named(name, module) for module in formats()):
            name = str(Path(name).expanduser().absolute())
        return Data(name, options, self.task)

    def open(self) -> ClassificationData:
        """The data set; the same object each time it is asked for with the same options."""
        check_decoding(**self._decoding())
        given = self.of_task(self.task).options
        options = {k: v for k, v in given.items() if k not in DECODING and (v is not None or k == "root")}
        opened = _opened(self.name, json.dumps(options | {"task": self.task}, sort_keys=True))
        must_encode(opened.class_names, "the class")
        return opened

    def _decoding(self) -> dict[str, Any]:
        return {key: self.options[key] for key in DECODING if self.options.get(key) is not None}

    def decode(self, pictures: Pictures, size: tuple[int, int], augment: str = "none", **how: Any) -> Any:
        """The pictures at the model's size, unreadable ones dealt with as `on_bad_image` says; to train on with an `augment`
        that cuts parts, in their own frames."""
        options = self._decoding()
        with waiting(f"reading {len(pictures):,} {pictures.kind}"):
            decoding = decode_clips_for_training if isinstance(pictures, Clips) else decode_for_training
            decoded: Any = decoding(pictures, size, augment, **options, **how)  # type: ignore[arg-type]
        if isinstance(pictures, Clips):
            if decoded.short:
                tell(
                    f"note: frames repeat in {decoded.short} of {len(decoded)} clips, which are shorter than the sampling"
                )
        if getattr(decoded, "repaired", None):
            tell(
                f"note: {decoded.repaired.total()} frames of {len(decoded.repaired)} clips cannot be decoded: the one before "
                "takes their place"
            )
        if decoded.skipped:
            total, what = len(decoded) + len(decoded.skipped), "clips" if isinstance(pictures, Clips) else "pictures"
            tell(f"{len(decoded.skipped)} of {total} {what} cannot be read and are left out")
        return decoded


def found(data: ClassificationData) -> list[Row]:
    """What was found of a data set, before a run begins: its pictures, its classes, their split, and what was left out."""
    sizes, (_, _, split) = data.summary.partition(": ")[0], data.summary.partition(": ")
    split, _, files = split.partition("; ")
    return [
        ("data", f"{data.name}: {sizes} ({few(data.class_names)})"),
        ("split", split),
        (
            "left out",
            files.removesuffix(" left out") and f"{files.removesuffix(' left out')} that the data do not count",
        ),
    ]


def left_out(data: ClassificationData, decoded: Mapping[str, Any]) -> dict[str, Any]:
    """What a run did not use, for its results: how many files of the data's folder are no pictures (or clips), and by split the
    names of those that cannot be read."""
    unread = {split: list(part.left_out) for split, part in decoded.items() if part is not None and part.left_out}
    return {"files": data.left_out, "unreadable": unread}


def fingerprint(data: ClassificationData) -> str | None:
    """Of a data set's pictures, labels and class names: it changes with any file's path, size or time of change. None
    where it cannot be known."""
    parts = [of_split(part, data.answers(part)) for part in (data.train, data.val, data.test) if len(part)]
    if None in parts:
        return None
    return hashlib.sha256("\n".join([*data.class_names, *map(str, parts)]).encode()).hexdigest()[:16]


def _is_of(name: str, module: ModuleType) -> bool:
    path = Path(name).expanduser()
    return bool(named(name, module)) or (hasattr(module, "claims") and path.exists() and module.claims(path))


_OPENED: dict[tuple[str, str], tuple[Any, ClassificationData]] = {}


def _opened(name: str, options: str) -> ClassificationData:
    """The data set, from memory where the same one was opened before and no folder of its files has changed since."""
    known = _OPENED.pop((name, options), None)
    if known is None or known[0] != _state(name, known[1]):
        opened = open_data(name, **json.loads(options))
        known = (_state(name, opened), opened)
    _OPENED[name, options] = known
    while len(_OPENED) > 4:
        del _OPENED[next(iter(_OPENED))]
    return known[1]


def _state(name: str, data: ClassificationData) -> dict[Path, int]:
    """When the folders that a data set was read from changed last."""
    files = [path for part in (data.train, data.val, data.test) if part.is_files for path in part.items]
    folders = {Path(name).expanduser(), *(path.parent for path in files)}  # type: ignore
    folders |= {folder.parent for folder in folders}
    return {folder: folder.stat().st_mtime_ns for folder in folders if folder.exists()}
