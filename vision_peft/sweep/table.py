"""The figures of a sweep: means over tasks, groups and seeds, and ranks with their uncertainty."""

from __future__ import annotations

import statistics
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from peft_data import vtab, world
from scipy.stats import rankdata

from peft_core.jobs.sweep.jobs import Job
from peft_core.registry import find_method, method_files

GROUPS = ("natural", "specialised", "structured")
RESAMPLES = 2000


def group_of(task: str) -> str:
    """VTAB's group of a `vtab/` or `world/` task, else ""."""
    prefix, _, name = task.partition("/")
    if prefix == "vtab" and name in vtab.TASKS:
        return vtab.TASKS[name][0]
    if prefix == "world":
        return next((group for group, tasks in world.GROUPS.items() if name in tasks), "")
    return ""


def record(job: Job, results: dict[str, Any], folder: str) -> dict[str, Any]:
    """A run as a row of results.csv."""
    count = results["parameters"]
    return {
        "task": job.task,
        "group": group_of(job.task),
        "method": job.method,
        "seed": job.seed,
        "settings": " ".join(f"{key}={value}" for key, value in job.point),
        "accuracy": results["accuracy"],
        "scored_on": results["evaluated_on"],
        "protocol": results["protocol"],
        "epoch": results["epoch"],
        **{key: count[key] for key in ("inserted", "head", "total")},
        "train_seconds": round(results["seconds"]["train"], 2),
        "scoring_seconds": round(results["seconds"]["evaluate"], 2),
        "checkpoint_family": results["checkpoint_family"],
        "normalisation": results["normalisation"]["name"],
        "folder": folder,
    }


@dataclass(frozen=True)
class Row:
    """A method in the table; accuracies in per cent, None where a task is not finished.

    Args:
        tasks: task -> mean over seeds and its standard deviation (None with one seed).
        groups: group -> mean of its tasks.
        of_groups, of_tasks: the two averages of the field: mean of the group means, mean of all tasks.
        spread: standard deviation over seeds of the mean of all tasks.
        seeds: those for which every task is finished.
        inserted, head, total: parameters, mean over tasks.
        seconds: of one run, training and scoring, mean.
    """

    method: str
    tasks: dict[str, tuple[float, float | None]]
    groups: dict[str, float | None]
    of_groups: float | None
    of_tasks: float | None
    spread: float | None
    seeds: tuple[int, ...]
    inserted: int
    head: int
    total: int
    seconds: float


def make_rows(records: Sequence[dict[str, Any]], tasks: Sequence[str]) -> list[Row]:
    """One row a method that has a run, in the order of the records."""
    methods = dict.fromkeys(each["method"] for each in records)
    return [_row(method, [each for each in records if each["method"] == method], tasks) for method in methods]


def _row(method: str, runs: Sequence[dict[str, Any]], tasks: Sequence[str]) -> Row:
    scores: dict[str, dict[int, float]] = {task: {} for task in tasks}
    for run in runs:
        if run["accuracy"] is not None:
            scores[run["task"]][run["seed"]] = 100 * run["accuracy"]
    means = {task: statistics.mean(by_seed.values()) for task, by_seed in scores.items() if by_seed}
    whole = [seed for seed in dict.fromkeys(run["seed"] for run in runs) if all(seed in s for s in scores.values())]
    members = {group: [task for task in tasks if group_of(task) == group] for group in GROUPS}
    groups = {group: _mean(means, inside) for group, inside in members.items() if inside}
    grouped = len(groups) > 1 and all(group_of(task) for task in tasks)
    per_seed = [statistics.mean(scores[task][seed] for task in tasks) for seed in whole]
    return Row(
        method=method,
        tasks={task: (means[task], _spread(list(scores[task].values()))) for task in means},
        groups=groups,
        of_groups=_mean(groups, list(groups)) if grouped else None,
        of_tasks=_mean(means, tasks),
        spread=_spread(per_seed),
        seeds=tuple(whole),
        inserted=round(statistics.mean(run["inserted"] for run in runs)),
        head=round(statistics.mean(run["head"] for run in runs)),
        total=round(statistics.mean(run["total"] for run in runs)),
        seconds=statistics.mean(run["train_seconds"] + run["scoring_seconds"] for run in runs),
    )


def _mean(values: dict[str, Any], names: Sequence[str]) -> float | None:
    found = [values.get(name) for name in names]
    return None if any(value is None for value in found) else statistics.mean(found)  # type: ignore[type-var]


def _spread(values: Sequence[float]) -> float | None:
    return statistics.stdev(values) if len(values) > 1 else None


def baselines_of(methods: Sequence[str]) -> list[str]:
    """Those of the methods that change nothing but the head."""
    return [name for name in methods if name in method_files() and find_method(name).needs == ("head",)]


def best_methods(rows: Sequence[Row], count: int, apart: Collection[str]) -> list[str]:
    """The `count` methods with the highest mean over all tasks, those `apart` left out."""
    ranked = sorted((row for row in rows if row.of_tasks is not None), key=lambda row: -(row.of_tasks or 0.0))
    return [row.method for row in ranked if row.method not in apart][:count]


def mean_ranks(
    records: Sequence[dict[str, Any]], tasks: Sequence[str], seed: int = 0
) -> list[tuple[str, float, float, float]]:
    """(method, mean rank over tasks, 95 % interval), best first, of the methods that finished every task; rank 1 is best.

    The interval is a bootstrap over tasks and, within each task, over a method's seeds: percentiles 2.5 and 97.5 of the
    mean rank over 2,000 resamples. A method with one seed contributes no seed variation.
    """
    accuracy: dict[tuple[str, str], list[float]] = {}
    for each in records:
        if each["accuracy"] is not None:
            accuracy.setdefault((each["task"], each["method"]), []).append(each["accuracy"])
    methods = [m for m in dict.fromkeys(r["method"] for r in records) if all((task, m) in accuracy for task in tasks)]
    if len(methods) < 2:
        return []
    chance = np.random.default_rng(seed)
    observed = np.array([[np.mean(accuracy[task, method]) for method in methods] for task in tasks])
    centre = rankdata(-observed, axis=1).mean(0)
    resampled = np.empty((RESAMPLES, len(methods)))
    drawn = np.empty((len(tasks), RESAMPLES, len(methods)))
    for i, task in enumerate(tasks):
        for j, method in enumerate(methods):
            seeds = np.array(accuracy[task, method])
            drawn[i, :, j] = seeds[chance.integers(len(seeds), size=(RESAMPLES, len(seeds)))].mean(1)
    ranks = rankdata(-drawn, axis=2)
    for n, chosen in enumerate(chance.integers(len(tasks), size=(RESAMPLES, len(tasks)))):
        resampled[n] = ranks[chosen, n].mean(0)
    low, high = np.percentile(resampled, [2.5, 97.5], axis=0)
    found = [(method, float(centre[j]), float(low[j]), float(high[j])) for j, method in enumerate(methods)]
    return sorted(found, key=lambda each: each[1])
