"""Protocols of `evaluate`, one file each; a file's name is the protocol's name.

A file has ABOUT, one line; `suits(config)`, whether it can judge a run with this config; `check(runs, how)`, which
raises what is wrong with the runs or with what is asked, before anything is written; `draw(runs, out, how)`, which
draws what is missing of the runs' pictures (in whatever process); and `evaluate(runs, out, how)`, which draws, judges
and returns an `Evaluation`.
"""

from __future__ import annotations

import importlib
import pkgutil
from pathlib import Path
from types import ModuleType

from peft_core.errors import PeftError, nearest
from peft_core.jobs.runs.folder import read_run_config


def list_protocols() -> dict[str, str]:
    """Name -> what it asks."""
    names = sorted(each.name for each in pkgutil.iter_modules(__path__))
    return {name: importlib.import_module(f"{__name__}.{name}").ABOUT for name in names}


def find_protocol(name: str | None, runs: list[Path]) -> tuple[str, ModuleType]:
    """The protocol of this name, or the one that suits the runs.

    Raises:
        PeftError: an unknown name, runs that none suits or that need different ones.
    """
    known = {each: importlib.import_module(f"{__name__}.{each}") for each in list_protocols()}
    if name is not None:
        if name not in known:
            raise PeftError(f'there is no protocol "{name}"{nearest(name, known)} (there are: {", ".join(known)}).')
        return name, known[name]
    fitting: dict[str, Path] = {}
    for run in runs:
        config = read_run_config(run)
        found = next((each for each, module in known.items() if module.suits(config)), None)
        if found is None:
            raise PeftError(f"no protocol suits {run} (there are: {', '.join(known)}): name one with --protocol.")
        fitting.setdefault(found, run)
    if len(fitting) > 1:
        (one, run), (other, another) = list(fitting.items())[:2]
        raise PeftError(f"{run} is judged by {one} and {another} by {other}: evaluate them apart.")
    (chosen,) = fitting
    return chosen, known[chosen]
