"""How a job ended."""

from __future__ import annotations

import dataclasses
import errno
import json
import traceback
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

from peft_data import DataError

from peft_core.errors import PeftError
from peft_core.files import read_json, write_files
from peft_core.jobs.runs.folder import CONFIG, OtherRun, RunFolder


@dataclasses.dataclass
class Outcome:
    """How a run ended, as a context that no error leaves: `results`, or a sentence in `error`.

    Args:
        trace: the traceback of an error that no sentence was written for.
        fatal: no other run can do better (the disk is full).
    """

    results: dict[str, Any] | None = None
    notes: tuple[str, ...] = ()
    error: str = ""
    trace: str = ""
    fatal: bool = False

    def __enter__(self) -> Outcome:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> bool:
        if not isinstance(error, Exception):
            return False
        self.error = " ".join(str(error).split()) or type(error).__name__
        if not isinstance(error, (PeftError, DataError)):
            self.error = f"{type(error).__name__}: {self.error}"
            self.trace = "".join(traceback.format_exception(error))
        causes = (error, error.__cause__)
        self.fatal = any(isinstance(each, OSError) and each.errno in (errno.ENOSPC, errno.EDQUOT) for each in causes)
        return True


def trained(fit: Callable[..., dict[str, Any]], settings: dict[str, Any], overwrite: bool, code: str) -> dict[str, Any]:
    """The results of `fit`, read where the run is finished; another run in its folder is replaced with `overwrite`.

    Args:
        code: the hash of the code that makes them, kept beside the folder.

    Raises:
        OtherRun: other settings or other code made what is there.
    """
    run = Path(settings["out"])
    mark = run.with_name(f"{run.name}.stamp")
    known = mark.is_file() and read_json(mark).get("code") == code
    other = (run / CONFIG).is_file() and not known
    if other and not overwrite:
        raise OtherRun(f"{run} was made by other code: give another --out, or --overwrite to run it again.")
    if other:
        RunFolder(run, "").clear()
    if not known:
        write_files(mark.parent, {mark.name: json.dumps({"code": code}).encode()})
    try:
        return fit(**(settings | {"overwrite": False}))
    except OtherRun:
        if not overwrite:
            raise
        return fit(**(settings | {"overwrite": True}))
