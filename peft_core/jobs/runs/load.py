"""`load_run`: a run folder back as a Run of its own program."""

from __future__ import annotations

import importlib
import os
from collections.abc import Collection
from pathlib import Path
from typing import Any

from peft_core.errors import PeftError
from peft_core.jobs.runs.folder import read_run_config

_RUNS = {"vision_peft": "vision_peft.run", "clip_peft": "clip_peft.run", "diffusion_peft": "diffusion_peft.use.run"}
CLASSIFIERS = ("vision_peft", "clip_peft")


def load_run(path: str | os.PathLike, programs: Collection[str] = tuple(_RUNS)) -> Any:
    """A trained run, ready for use: `.model`, `.transform`, `.class_names`, `.predict(images)`.

    Args:
        path: the run folder.
        programs: whose runs are wanted.

    Raises:
        PeftError: no run folder, a run of another program, or one whose adapter was not written yet.
    """
    program = program_of(path, programs)
    return importlib.import_module(_RUNS[program]).open_run(Path(path).expanduser())


def program_of(path: str | os.PathLike, programs: Collection[str] = tuple(_RUNS)) -> str:
    """The program that made a run.

    Raises:
        PeftError: no run folder, or a run of none of these programs.
    """
    program = (str(read_run_config(path)["command"]).split() or [""])[0]
    if program not in _RUNS:
        raise PeftError(f"{path} was made by {program or 'nobody'}, which this suite does not know.")
    if program not in programs:
        raise PeftError(f"{path} is a run of {program}, and this command takes runs of {' and '.join(programs)}.")
    return program
