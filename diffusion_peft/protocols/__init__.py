"""Protocols of `evaluate`, one file each; a file's name is the protocol's name.

A file has ABOUT, one line; `suits(config)`, whether it can judge a run with this config; `check(runs, how)`, which
raises what is wrong with the runs or with what is asked, before anything is written; `draw(runs, out, how)`, which
draws what is missing of the runs' pictures (in whatever process); and `evaluate(runs, out, how)`, which draws, judges
and returns an `Evaluation`.
"""

from __future__ import annotations

import importlib
import pkgutil
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

from diffusion_peft.draw import Drawing
from peft_core.errors import PeftError, nearest
from peft_core.runs import read_run_config


@dataclass(frozen=True)
class How:
    """What `evaluate` was asked for; a protocol reads what it has a use for.

    Args:
        labels: a name for each run's row of the table; its method's where None.
        prompts: with `{}` for the subject; the protocol's own where None.
        subject, class_name: what runs call it, and what anybody does; from the runs' settings where None.
        count, seed: pictures a prompt, with seeds seed, seed + 1, …
        scales: of a scale sweep, ascending; none where empty.
        image_features, clip: names of models.
        drawing, dtype: how pictures are drawn.
    """

    labels: tuple[str, ...] | None = None
    prompts: tuple[str, ...] | None = None
    subject: str | None = None
    class_name: str | None = None
    count: int = 4
    seed: int = 0
    scales: tuple[float, ...] = (0.0, 0.25, 0.5, 0.75, 1.0)
    image_features: str | None = None
    clip: str | None = None
    drawing: Drawing = Drawing()
    dtype: str = "float32"


@dataclass
class Evaluation:
    """What a protocol found.

    Args:
        headline: one line.
        rows: a row a run (and a row for each thing that it is compared with), as in results.csv.
        summary: a row a method: means and standard deviations over runs.
        columns: (key, heading) of the summary's table.
        facts: what else stands in results.json: models that scored, prompts, ceilings and floors.
        sections: (heading, HTML) of the report, after the summary.
    """

    headline: str
    rows: list[dict[str, Any]]
    summary: list[dict[str, Any]]
    columns: list[tuple[str, str]]
    facts: dict[str, Any] = field(default_factory=dict)
    sections: list[tuple[str, str]] = field(default_factory=list)


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
