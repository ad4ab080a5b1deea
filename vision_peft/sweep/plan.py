"""What a sweep runs: data sets × methods × seeds, and for each method the points of its grid."""

from __future__ import annotations

import glob
import inspect
import itertools
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from peft_data import list_data
from peft_data.names import formats, named

from peft_core.errors import PeftError, nearest
from peft_core.jobs.cli.options import MethodChoice
from peft_core.jobs.sweep.jobs import Job, Point, assignments, check_option, expand_methods, grid_points, nested
from vision_peft.fit import fit
from vision_peft.tasks import kind_of

DECIDED = ("data", "method", "seed", "out", "overwrite", "protocol", "eval_on", "backbone")
"""Options of `fit` that the sweep itself decides."""
FOR_ALL = ("recipe", "trainer", "trainer.", "save_every", "data.")
"""Options that --set may set and a grid may not."""


@dataclass(frozen=True)
class Plan:
    """A sweep, checked.

    Args:
        tasks: names or paths of data sets, in order.
        methods: label -> a method's or preset's name, or a preset's path.
        points: label -> the points of that method's grid; [()] without a grid.
        common: label -> settings of every run of that method.
        protocol: `honest` chooses points on val; `legacy` on test, as it does the epoch.
        choose_on: the data sets whose mean chooses a method's point for all; () where each chooses its own.
    """

    tasks: tuple[str, ...]
    methods: dict[str, str]
    seeds: tuple[int, ...]
    points: dict[str, list[Point]]
    common: dict[str, Point]
    backbone: str
    protocol: str
    choose_on: tuple[str, ...] = ()

    def job(self, task: str, method: str, seed: int, point: Point, split: str) -> Job:
        settings: dict[str, Any] = {"data": {"name": task}, "method": {"name": self.methods[method]}}
        settings |= {"backbone": self.backbone, "seed": seed, "protocol": self.protocol, "eval_on": split}
        return Job(task, method, seed, point, split, nested(settings, (*self.common[method], *point)))

    def choosing(self) -> Iterator[Job]:
        """The runs that choose a point of the grid for each task (or for all) and method, at the first seed."""
        split = "test" if self.protocol == "legacy" else "val"
        for task, method in itertools.product(self.choose_on or self.tasks, self.methods):
            if len(self.points[method]) > 1:
                yield from (self.job(task, method, self.seeds[0], point, split) for point in self.points[method])

    def final(
        self, chosen: dict[tuple[str, str], Point], methods: Iterable[str], seeds: Iterable[int]
    ) -> Iterator[Job]:
        """The runs that the table is made of, where the choice of a point (`chosen`) did not fail."""
        for task, seed, method in itertools.product(self.tasks, seeds, methods):
            points = self.points[method]
            point = points[0] if len(points) == 1 else chosen.get((task, method))
            if point is not None:
                yield self.job(task, method, seed, point, "test")


def make_plan(
    data: Sequence[str],
    methods: Sequence[str],
    seeds: Sequence[int],
    grid: Sequence[str],
    common: Sequence[str],
    backbone: str,
    protocol: str,
    choose_on: Sequence[str] = (),
) -> Plan:
    """A plan from what stands on the command line.

    Raises:
        PeftError: a pattern without a match, an unknown task, method or option (each with the nearest), a value that the
            option does not take, data sets to choose on without a choice.
    """
    if not seeds:
        raise PeftError("a sweep needs at least one seed: give --seeds 0.")
    named = expand_methods(methods, "vision", suits_vision)
    tasks = expand_data(data)
    names = {"data": tasks[0]}
    fixed = assignments("--set", common, named, lambda flag, option: check_option(flag, option, fit, DECIDED, names))
    options = assignments(
        "--grid", grid, named, lambda flag, o: check_option(flag, o, fit, (*DECIDED, *FOR_ALL), names)
    )
    points = {label: grid_points(options[label]) for label in named}
    chosen_on = expand_data(choose_on) if choose_on else ()
    if chosen_on and (protocol == "legacy" or all(len(each) == 1 for each in points.values())):
        raise PeftError(
            "choose_on names the data sets whose val pictures choose from a grid: give --grid, and not legacy."
        )
    common_points = {label: tuple(each) for label, each in fixed.items()}
    plan = Plan(tasks, named, tuple(dict.fromkeys(seeds)), points, common_points, backbone, protocol, chosen_on)
    check_values(plan)
    return plan


def expand_data(patterns: Sequence[str]) -> tuple[str, ...]:
    """Names and paths of data sets; `*` stands for anything within one part of a name."""
    known = [name for name in list_data() if "<" not in name]
    found: list[str] = []
    for pattern in patterns:
        if any(mark in pattern for mark in "*?["):
            matches = [name for name in known if fits(name, pattern)] or folders(pattern)
            if not matches:
                groups = dict.fromkeys(f"{name.rpartition('/')[0]}/*" for name in known if "/" in name)
                raise PeftError(
                    f'no data set matches "{pattern}"{nearest(pattern, groups)} (`list data` shows the names).'
                )
            found += matches
        elif is_data(pattern):
            found.append(pattern)
        else:
            raise PeftError(
                f'there is no data set and no folder "{pattern}"{nearest(pattern, known)} (`list data` shows the names).'
            )
    if not found:
        raise PeftError('a sweep needs data sets: give --data "world/*", for instance.')
    return tuple(dict.fromkeys(found))


def folders(pattern: str) -> list[str]:
    found = sorted(glob.glob(os.path.expanduser(pattern)))
    return [path for path in found if Path(path).is_dir()]


def fits(name: str, pattern: str) -> bool:
    parts, wanted = name.split("/"), pattern.split("/")
    return len(parts) == len(wanted) and all(map(fnmatchcase, parts, wanted))


def is_data(name: str) -> bool:
    return Path(name).expanduser().exists() or any(named(name, module) for module in formats())


def suits_vision(name: str) -> bool:
    """Whether it is a method for pictures and no other program's, and needs nothing that only a user can give."""
    method = MethodChoice.accepts(name)
    settings = inspect.signature(method).parameters
    needed = "frames" in settings or any(each.default is each.empty for each in settings.values())
    return method.__module__.partition(".")[0] in ("peft_core", "vision_peft") and not needed


def check_values(plan: Plan) -> None:
    """Lets `fit` read every value once, so that a mistake is told before anything runs."""
    seen: set[tuple[str, str]] = set()
    for label, points in plan.points.items():
        for number, point in enumerate(points):
            new = {pair for pair in point if not pair[0].startswith("method.")} - seen
            if number and not new and not any(key.startswith("method.") for key, _ in point):
                continue
            seen |= new
            settings = {"recipe": "default"} | plan.job(plan.tasks[0], label, 0, point, "test").settings
            task = fit.resolve([("", settings | {"out": "-"})])["task"]
            if not kind_of(task).classes:
                raise PeftError(
                    f"a sweep compares accuracies, and the task {task} has none: train its runs with `fit`, then `compare`."
                )
