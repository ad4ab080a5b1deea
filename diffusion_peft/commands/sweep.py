"""`diffusion_peft sweep`: subjects × methods × seeds trained, then judged together: the table of methods."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from peft_data.options import arguments, takes

from diffusion_peft.commands.evaluate import EvaluationOptions, how_of
from diffusion_peft.commands.fit import check, fit
from diffusion_peft.commands.suited import unet_methods
from diffusion_peft.control.options import is_control
from diffusion_peft.evaluation.tables import show, write_evaluation
from diffusion_peft.protocols import find_protocol
from peft_core.errors import PeftError
from peft_core.jobs.cli.command import command
from peft_core.jobs.cli.shared import sweeping
from peft_core.jobs.runs.folder import RunFolder
from peft_core.jobs.sweep.jobs import Job, assignments, check_option, expand_methods, grid_points, nested
from peft_core.jobs.sweep.preset import planned

if TYPE_CHECKING:
    from peft_core.jobs.sweep.outcome import Outcome

PROGRAM = "diffusion_peft sweep"
PLANNED: dict[str, Any] = {
    "data": [],
    "methods": [],
    "seeds": [0],
    "grid": [],
    "set": [],
    "base": "reference",
    "evaluation": {},
}
"""What a sweep's plan consists of, and what it is where nothing is said."""
DECIDED = ("data", "method", "base", "seed", "out", "overwrite")


@command("diffusion")
@takes(sweeping)
def sweep(
    *,
    base: str | None = None,
    evaluation: EvaluationOptions = None,  # type: ignore[assignment]
    **common: Any,
) -> int:
    """Train data × methods × seeds (× settings) and judge all runs by a protocol: one table. The same command goes on.

    Args:
        out: The sweep's folder: runs, pictures, results.json, results.csv, table.md, report.html.
        data: Subjects or folders, as for fit.
        grid: OPTION=VALUE,VALUE: a row of the table for each, e.g. lr=1e-4,1e-3; METHOD:OPTION=… for one method.
        set: OPTION=VALUE of fit for all runs, e.g. steps=300 method.rank=4; METHOD:OPTION=VALUE for one method.
        base: As for fit.
        evaluation: Options of `evaluate`, e.g. --evaluation.count 2.
    """
    how = arguments(locals())
    plan = planned(sweep, PLANNED, how)
    if not plan["data"]:
        raise PeftError("a sweep needs --data, for instance world/subjects/0 world/subjects/1.")
    from peft_core.jobs.sweep.folder import SweepFolder

    jobs = trainings(plan)
    if not all(task.startswith("world/") for task in plan["data"]):
        from diffusion_peft.evaluation.scorers import open_scorers

        judged = how_of(plan["evaluation"])
        open_scorers(judged.image_features, judged.clip, drawn=False)  # said now, not after a night of training
    with SweepFolder(how["out"], plan, how["overwrite"], PROGRAM) as folder:
        failed = train(jobs, folder, plan["evaluation"], how)
        finished = [job for job in jobs if folder.is_finished(job)]
        if finished:
            judge(folder.path, finished, plan["evaluation"])
    for job, why in failed.items():
        print(f"diffusion_peft: {job} failed: {why}; the same command tries it again.", file=sys.stderr)
    return 1 if failed else 0


def trainings(plan: dict[str, Any]) -> list[Job]:
    """Every run, seeds outermost so that a table of all methods comes early.

    Raises:
        PeftError: an unknown method, option or value, told before anything runs.
    """
    named = expand_methods(plan["methods"], "diffusion", suits)
    common, points = (
        assignments(f"--{flag}", plan[flag], named, lambda word, option: check_option(word, option, fit, DECIDED))
        for flag in ("set", "grid")
    )
    found = []
    for seed, task, label in itertools.product(plan["seeds"], plan["data"], named):
        for point in grid_points(points[label]):
            settings = {"data": task, "base": plan["base"], "method": {"name": named[label]}, "seed": seed}
            found.append(Job(task, label, seed, point, "all", nested(settings, (*common[label], *point))))
    for job in {(job.method, job.point): job for job in reversed(found)}.values():
        check(fit.resolve([("", job.settings)]))
    how_of(plan["evaluation"])
    return found


def suits(name: str) -> bool:
    """Whether it personalises a UNet: listed, and no control, whose data are pairs."""
    return name in unet_methods() and not is_control({"method": name})


def train(jobs: Sequence[Job], folder: Any, options: dict[str, Any], how: dict[str, Any]) -> dict[Job, str]:
    """Trains what is not finished and draws its pictures; what went wrong, by run."""
    from diffusion_peft.commands.sweep_worker import carry_out
    from peft_core.jobs.sweep.pool import Pool, default_workers
    from peft_core.jobs.sweep.progress import Progress

    overwrite = how["overwrite"]
    todo = [job for job in jobs if overwrite or not folder.is_finished(job)]
    progress, failed, notes = Progress(len(jobs)), {}, {}
    progress.found = len(jobs) - len(todo)

    def parcel(job: Job, out: Path) -> tuple[Any, ...]:
        return job.settings | {"out": str(out / job.folder), "overwrite": overwrite}, out, options

    def done(job: Job, outcome: Outcome) -> None:
        folder.note_error(job, outcome.trace)
        for note in (note for note in outcome.notes if note not in notes):
            notes[note] = progress.say(note)
        if outcome.error:
            failed[job] = outcome.error
        if outcome.fatal:
            raise PeftError(f"the sweep stops at {job} ({outcome.error}): make room; the same command then goes on.")
        progress.step(job, len(failed))

    try:
        with Pool(*default_workers(how["workers"], how["threads"]), folder.path, carry_out, parcel) as pool:  # type: ignore[arg-type]
            pool.run(todo, done)
    finally:
        progress.end()
    return failed


def label_of(job: Job) -> str:
    """Its row of the table: `lora`, or `lora lr=1e-3` in a grid."""
    return " ".join([job.method, *(f"{key}={value}" for key, value in job.point)])


def judge(out: Path, jobs: Sequence[Job], options: dict[str, Any]) -> None:
    """The table of all runs that are finished."""
    runs = [out / job.folder for job in jobs]
    name, protocol = find_protocol(options.get("protocol"), runs)
    evaluation = protocol.evaluate(runs, out, how_of(options | {"labels": [label_of(job) for job in jobs]}))
    folder = RunFolder(out, PROGRAM)
    write_evaluation(folder, name, evaluation)
    show(folder, evaluation)
