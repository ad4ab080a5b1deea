"""A search and the training of what it chose, in one run folder.

search/         what was tried: config.yaml (the plan), tried.csv, tried.json, runs/
the rest        the run of `fit` with the chosen settings; its results.json and report.html hold the table
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import peft_core
from peft_core.errors import PeftError
from peft_core.files import read_yaml
from peft_core.jobs.auto.halving import Candidate, Halving
from peft_core.jobs.auto.options import count_of, seconds_of
from peft_core.jobs.runs.folder import CONFIG, SEARCH, RunFolder
from peft_core.jobs.runs.process import duration, tell
from peft_core.jobs.sweep.folder import SweepFolder
from peft_core.jobs.sweep.jobs import Job
from peft_core.jobs.sweep.outcome import Outcome

RATES = (1.0, 3.0, 1 / 3)
"""Times the recipe's learning rate, the recipe's own first."""


def times(factor: float, lr: float) -> float:
    """A learning rate of two digits."""
    return float(f"{factor * lr:.2g}")


def carry_out(
    program: str,
    how: dict[str, Any],
    plan: dict[str, Any],
    task: str,
    candidates: Callable[[int | None], tuple[list[Candidate], list[dict[str, Any]]]],
    run: Callable[[Path, Job], Outcome],
    fit: Callable[..., dict[str, Any]],
    grow: float = 1.0,
) -> dict[str, Any]:
    """Searches, or goes on searching, and trains the winner; the results of its run.

    Args:
        program: e.g. `vision_peft auto`.
        how: the arguments of `auto`.
        plan: what decides the search, plain.
        task: name of the data.
        candidates: budget -> what to choose from, and rows of what is refused.
        run: (folder of the search, job) -> how it ended.
        grow: how much longer an epoch of the last training is than one of a try.
    """
    limit, budget = seconds_of(how["time"]), count_of(how["budget"])
    plan |= {"time": limit, "budget": budget, "version": peft_core.__version__}
    out = Path(how["out"]).expanduser().absolute()
    make_way(out, plan, how["overwrite"])
    with SweepFolder(str(out / SEARCH), plan, False, program) as folder:
        some, refused = candidates(budget)
        if not some:
            raise PeftError(
                f"--budget {how['budget']} fits no method: {refusals(refused)}; give a larger one, or other --methods."
                if budget is not None
                else f"none of the methods fits: {refusals(refused)}; give other --methods."
            )
        within = "" if limit is None else f"; all within {duration(limit)}"
        kinds = len({each.method for each in some})
        tell(
            f"{len(some)} settings of {kinds} methods to choose from on val; test is not touched before the end{within}"
        )
        search = Halving(folder, some, refused, task, lambda job: run(folder.path, job), limit, grow, budget)
        chosen = search.search()
        words = search.summary(chosen)
        search.write(words, chosen)
    tell(f"chosen: {words}")
    return fit(**(chosen.settings | {"epochs": chosen.epochs, "eval_on": "test", "out": how["out"]}))


def refusals(rows: Sequence[dict[str, Any]]) -> str:
    return "; ".join(f"{row['method']} {row['note']}" for row in rows[:6])


def make_way(out: Path, plan: dict[str, Any], overwrite: bool) -> None:
    """Checks that the folder is this search's or free; with `overwrite` makes it so."""
    mark, run = out / SEARCH / CONFIG, RunFolder(out, "")
    there = read_yaml(mark) if mark.is_file() else {}
    same = bool(there) and all(there.get(key) == value for key, value in plan.items())
    if overwrite and not same:
        run.clear()
        if mark.is_file():
            shutil.rmtree(out / SEARCH)
    elif (out / CONFIG).is_file() and not there:
        raise PeftError(f"{out} holds a run that no search chose: give another --out, or --overwrite to replace it.")
    elif there and not same:
        key = next(key for key, value in plan.items() if there.get(key) != value)
        raise PeftError(
            f"{out} holds another search ({key} is {there.get(key)} there, {plan[key]} here): give another --out, or --overwrite "
            "to start anew."
        )
