"""`clip_peft sweep`: a protocol over data sets, methods and seeds, and its table. The same command goes on."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import multiprocessing
import os
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any, Literal

from peft_data import DataError

from clip_peft.fit import fit
from clip_peft.protocols import Row, Trial, trials
from clip_peft.sweep_report import write_tables
from peft_core.adapter_file import WEIGHTS
from peft_core.command import command
from peft_core.config_files import find_config
from peft_core.errors import PeftError, nearest
from peft_core.files import write_files
from peft_core.line import read_yaml
from peft_core.options import MethodChoice, hints
from peft_core.runs import OtherRun, tell
from vision_peft.data import Data, common
from vision_peft.sweep_plan import slug

FAILURES = (PeftError, DataError, RuntimeError, OSError)
DECIDED = ("data", "method", "backbone", "out", "shots", "classes", "seed", "overwrite")
PLANNED: dict[str, Any] = {
    "protocol": None, "data": [], "methods": [], "seeds": [1, 2, 3], "shots": [], "targets": [], "set": [],
    "backbone": "reference",
}  # fmt: skip
"""What a sweep consists of, and what it is where nothing is said."""


@command("clip")
def sweep(
    *,
    out: str,
    protocol: Literal["base_to_new", "all_classes", "few_shot", "cross_dataset", "domain_generalisation"] | None = None,
    data: list[str] | None = None,
    methods: list[str] | None = None,
    seeds: list[int] | None = None,
    shots: list[int] | None = None,
    targets: list[str] | None = None,
    set: list[str] | None = None,
    backbone: str | None = None,
    sweep: str | None = None,
    workers: int = 1,
    threads: int = 0,
    overwrite: bool = False,
) -> int:
    """Run a protocol (`list protocols`) over data sets, methods and seeds, and make one table. The same command goes on.

    Args:
        out: The folder: runs, results.csv, table.md, report.html and its figures.
        protocol: What is trained and what is scored.
        data: Data sets or folders to train on.
        methods: Methods and presets (`list methods`).
        seeds: By default 1 2 3.
        shots: By default 16; few_shot: 1 2 4 8 16.
        targets: What cross_dataset and domain_generalisation score; from coop/imagenet, by default CoOp's.
        set: OPTION=VALUE of fit for all runs, e.g. epochs=50 data.root=~/data; METHOD:OPTION=VALUE for one method.
        backbone: As for fit.
        sweep: A sweep's name (`configs/clip/sweep`) or YAML; options given besides go over it.
        workers: Processes.
        threads: Of each process; by default the processors are shared out among several.
        overwrite: Run again what was run with other settings.
    """
    given = {key: value for key, value in locals().items() if key in PLANNED and value is not None}
    plan = PLANNED | (with_preset(sweep, given | {"out": out}) if sweep else given)
    for name in ("protocol", "data", "methods"):
        if not plan[name]:
            raise PeftError(f"a sweep needs --{name}, or a preset that says it (--sweep NAME).")
    folder, methods = Path(out).expanduser().absolute(), plan["methods"]
    own = {method: assigned(plan["set"], method, methods) for method in methods}
    planned = list(trials(plan["protocol"], plan["data"], plan["targets"], methods, plan["seeds"], plan["shots"]))
    jobs = [(trial, settings_of(trial, folder, own[trial.method], plan["backbone"])) for trial in planned]
    for settings in {trial.method: settings for trial, settings in jobs}.values():
        fit.resolve([("", settings)])  # a mistake is told before anything runs
    rows: dict[Trial, list[Row]] = {}
    failed: list[str] = []
    began = time.monotonic()
    for trial, found, problem in carried_out(jobs, workers, threads, overwrite):
        rows[trial] = found
        failed += [f"{trial}: {problem}"] if problem else []
        words = ", ".join(
            f"{r['column']} {'–' if r['accuracy'] is None else format(r['accuracy'], '.4f')}" for r in found
        )
        tell(f"[{len(rows)}/{len(jobs)}, {time.monotonic() - began:.0f} s] {trial}: {problem or words}")
        if len(rows) % 8 == 0 or len(rows) == len(jobs):
            inorder = [row for one in planned for row in rows.get(one, ())]
            write_tables(folder, plan["protocol"], inorder, failed, f"{len(rows)} of {len(jobs)} runs")
    print(f"{folder / 'table.md'}\n\n{(folder / 'table.md').read_text()}")
    return 1 if failed else 0


def with_preset(name: str, given: dict[str, Any]) -> dict[str, Any]:
    """A sweep's YAML with the given options over it."""
    path = find_config("sweep", name, "clip")
    found = sweep.resolve([(str(path), read_yaml(path)), ("", given)])
    return {key: value for key, value in found.items() if key in PLANNED and value is not None}


def assigned(words: Sequence[str], method: str, methods: Sequence[str]) -> dict[str, Any]:
    """The settings that OPTION=VALUE and METHOD:OPTION=VALUE give one method; `method.X` goes to those that have X."""
    found: dict[str, Any] = {}
    known = hints(MethodChoice.accepts(method))
    for word in sorted(words, key=lambda word: ":" in word.partition("=")[0]):
        key, equals, value = word.partition("=")
        label, colon, option = key.rpartition(":")
        if not equals or not value:
            raise PeftError(f'--set takes OPTION=VALUE or METHOD:OPTION=VALUE, not "{word}".')
        if colon and label not in methods:
            raise PeftError(f'--set {word}: the sweep has no method "{label}"{nearest(label, methods)}.')
        if option in DECIDED:
            raise PeftError(
                f"--set cannot set {option}, which has an option of its own in a sweep, or is decided by it."
            )
        group, _, inner = option.partition(".")
        if (colon and label != method) or (group == "method" and not colon and inner not in known):
            continue
        if inner:
            found.setdefault(group, {})[inner] = value
        else:
            found[option] = value
    return found


def settings_of(trial: Trial, folder: Path, own: dict[str, Any], backbone: str) -> dict[str, Any]:
    """`fit`'s settings of a run."""
    place = (
        folder / "runs" / slug(trial.data) / slug(trial.method) / f"{trial.shots}shots-{trial.classes}-seed{trial.seed}"
    )
    settings = {key: value for key, value in own.items() if key not in ("data", "method")}
    settings |= {
        "data": {"name": trial.data} | own.get("data", {}),
        "method": {"name": trial.method} | own.get("method", {}),
    }
    settings |= {"backbone": backbone, "shots": trial.shots, "classes": trial.classes, "seed": trial.seed}
    return settings | {"out": str(place)}


def carried_out(jobs: Sequence[tuple[Trial, dict]], workers: int, threads: int, overwrite: bool) -> Iterator[tuple]:
    """(trial, rows, what went wrong) of each run as it ends."""
    if workers <= 1:
        for trial, settings in jobs:
            yield trial, *carry_out(trial, settings, threads, overwrite)
        return
    each = threads or max(1, (os.cpu_count() or 1) // workers)
    forks = "forkserver" in multiprocessing.get_all_start_methods()
    context = multiprocessing.get_context("forkserver" if forks else "spawn")
    if forks:
        context.set_forkserver_preload(["clip_peft.job"])  # imported once for all
    with ProcessPoolExecutor(workers, mp_context=context) as pool:
        waiting = {pool.submit(carry_out, trial, settings, each, overwrite): trial for trial, settings in jobs}
        try:
            for done in as_completed(waiting):
                yield waiting[done], *done.result()
        finally:
            pool.shutdown(cancel_futures=True)


def carry_out(trial: Trial, settings: dict[str, Any], threads: int, overwrite: bool) -> tuple[list[Row], str]:
    """One run and its scores as rows, and what went wrong; what is there already is read."""
    import torch

    if threads:
        torch.set_num_threads(threads)
    rows: list[Row] = []
    problem = ""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        try:
            results = trained(settings, overwrite)
            for column, target, classes in trial.scored:
                known = target is None and classes == trial.classes
                scores = results if known else scored(Path(settings["out"]), settings["data"], target, classes)
                problem = problem or scores.get("problem", "")
                rows.append(row_of(trial, column, results, scores))
        except FAILURES as error:
            problem = " ".join(str(error).split()) or type(error).__name__
            rows = [row_of(trial, column, {}, {}) for column, _, _ in trial.scored]
    return rows, problem


def trained(settings: dict[str, Any], overwrite: bool) -> dict[str, Any]:
    try:
        return fit(**settings)
    except OtherRun:
        if not overwrite:
            raise
        return fit(**settings, overwrite=True)


def scored(run: Path, data: dict[str, Any], target: str | None, classes: str) -> dict[str, Any]:
    """`test`'s figures of a run, kept beside it as long as its adapter is the same; {} for a method that cannot name these
    classes."""
    from clip_peft.use import report

    adapter = hashlib.sha256((run / "adapter" / WEIGHTS).read_bytes()).hexdigest()
    name = f"scores-{slug(target or data['name'])}-{classes}.json"
    if (run / name).is_file():
        found = json.loads((run / name).read_text())
        if found["adapter"] == adapter:
            return found
    shared = {key: value for key, value in data.items() if key in hints(common)}
    try:
        found = report(str(run), Data(target, shared).absolute() if target else None, "test", classes, True, quiet=True)
    except PeftError as error:
        if "cannot name other classes" not in str(error):
            raise
        return {}
    found["adapter"] = adapter
    write_files(run, {name: json.dumps(found).encode()})
    return found


def row_of(trial: Trial, column: str, results: dict[str, Any], scores: dict[str, Any]) -> Row:
    return {
        "data": trial.data,
        "method": trial.method,
        "shots": trial.shots,
        "seed": trial.seed,
        "column": column,
        "accuracy": scores.get("accuracy"),
        "ece": scores.get("ece"),
        "trained_parameters": results.get("parameters", {}).get("trainable"),
        "seconds": sum(results.get("seconds", {}).values()),
        "bins": scores.get("bins", []),
    }
