"""`load_run`: a run folder back as a Run of its own program."""

from __future__ import annotations
import importlib
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Literal
from peft_core.errors import PeftError
from peft_core.files import is_used, left_by_killed_writers, write_files
from peft_core.jobs.runs.process import is_first_process, tell
from peft_core.jobs.runs.folder import read_run_config


_RUNS = {"vision_peft": "vision_peft.run", "clip_peft": "clip_peft.run", "diffusion_peft": "diffusion_peft.use.run"}


def load_run(path: str | os.PathLike) -> Any:
    """A trained run, ready for use: `.model`, `.transform`, `.class_names`, `.predict(images)`.

    Raises:
        PeftError: no run folder, or a run whose adapter was not written yet.
    """
    program = str(read_run_config(path)["command"]).split()[0]
    if program not in _RUNS:
        raise PeftError(f"{path} was made by {program}, which this suite does not know.")
    return importlib.import_module(_RUNS[program]).open_run(Path(path).expanduser())
