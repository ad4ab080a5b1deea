"""What a sweep runs: data sets × methods × seeds, and for each method the points of its grid."""

from __future__ import annotations

import glob
import inspect
import itertools
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from peft_data import DataError, list_data

from peft_core.command import is_choice
from peft_core.config_files import list_configs
from peft_core.errors import PeftError, nearest
from peft_core.method import list_methods
from peft_core.options import MethodChoice, hints
from vision_peft.data import Data, formats
from vision_peft.fit import fit

Point = tuple[tuple[str, str], ...]
"""Settings of `fit` as (option, value), e.g. (("method.rank", "4"), ("lr", "1e-3"))."""

DECIDED = ("data", "method", "seed", "out", "overwrite", "protocol", "eval_on", "backbone")
"""Options of `fit` that the sweep itself decides."""


@dataclass(frozen=True)
class Job:
    """One run of `fit`; `split` is what it is scored on, `folder` its place within the sweep's folder."""

    task: str
    method: str
    seed: int
    point: Point
    split: str
    settings: dict[str, Any] = field(compare=False)

    @property
    def folder(self) -> str:
        parts = ["runs", slug(self.task), self.method]
        parts += (
            [",".join(f"{key.rpartition('.')[2]}={slug(value)}" for key, value in self.point)] if self.point else []
        )
        return "/".join([*parts, f"{self.split}-seed{self.seed}"])

    def __str__(self) -> str:
        point = " ".join(f"{key}={value}" for key, value in self.point)
        return " ".join(filter(None, [self.task, self.method, point, f"seed {self.seed}"]))


@dataclass(frozen=True)
class Plan:
    """A sweep, checked.

    Args:
        tasks: names or paths of data sets, in order.
        methods: label -> a method's or preset's name, or a preset's path.
        points: label -> the points of that method's grid; [()] without a grid.
        common: label -> settings of every run of that method.
        protocol: `honest` chooses points on val; `legacy` on test, as it does the epoch.
    """

    tasks: tuple[str, ...]
    methods: dict[str, str]
    seeds: tuple[int, ...]
    points: dict[str, list[Point]]
    common: dict[str, Point]
    backbone: str
    protocol: str

    def job(self, task: str, method: str, seed: int, point: Point, split: str) -> Job:
        settings: dict[str, Any] = {"data": {"name": task}, "method": {"name": self.methods[method]}}
        settings |= {"backbone": self.backbone, "seed": seed, "protocol": self.protocol, "eval_on": split}
        return Job(task, method, seed, point, split, nested(settings, (*self.common[method], *point)))

    def choosing(self) -> Iterator[Job]:
        """The runs that choose a point of the grid for each task and method, all at the first seed."""
        split = "test" if self.protocol == "legacy" else "val"
        for task, method in itertools.product(self.tasks, self.methods):
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


def nested(settings: dict[str, Any], pairs: Iterable[tuple[str, str]]) -> dict[str, Any]:
    """The settings with (option, value) put in, `method.rank` where `method` has its options."""
    for key, value in pairs:
        group, dot, option = key.partition(".")
        if dot:
            settings.setdefault(group, {})[option] = value
        else:
            settings[key] = value
    return settings


def make_plan(
    data: Sequence[str],
    methods: Sequence[str],
    seeds: Sequence[int],
    grid: Sequence[str],
    common: Sequence[str],
    backbone: str,
    protocol: str,
) -> Plan:
    """A plan from what stands on the command line.

    Raises:
        PeftError: a pattern without a match, an unknown task, method or option (each with the nearest), a value that the
            option does not take.
    """
    if not seeds:
        raise PeftError("a sweep needs at least one seed: give --seeds 0.")
    named = expand_methods(methods)
    tasks = expand_data(data)
    decided = frozenset((*DECIDED, "recipe", "trainer", "save_every"))
    fixed = assignments("--set", common, named, lambda *option: check_option(*option, tasks[0], frozenset(DECIDED)))
    options = assignments("--grid", grid, named, lambda *option: check_option(*option, tasks[0], decided))
    points = {label: grid_points(options[label]) for label in named}
    plan = Plan(
        tasks, named, tuple(dict.fromkeys(seeds)), points, {k: tuple(v) for k, v in fixed.items()}, backbone, protocol
    )
    check_values(plan)
    return plan


def grid_points(options: Sequence[tuple[str, str]]) -> list[Point]:
    """Every combination of the values of (option, "value,value"); [()] without options."""
    lists = [[(key, value) for value in split_values(values)] for key, values in options]
    for inner in lists:
        if not inner or len(set(inner)) < len(inner):
            raise PeftError(f"--grid {inner[0][0] if inner else ''} needs values that differ, separated by commas.")
    return [tuple(point) for point in itertools.product(*lists)]


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
        elif is_data(pattern, known):
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


def is_data(name: str, known: Sequence[str]) -> bool:
    if name in known or Path(name).expanduser().exists():
        return True
    try:
        Data.accepts(name)
    except (PeftError, DataError):
        return False
    patterns = [pattern.partition("<")[0] for pattern in list_data() if "<" in pattern]
    aliases = [alias for module in formats() for alias in getattr(module, "ALIASES", {})]
    return name in aliases or any(name.startswith(prefix) and name != prefix for prefix in patterns)


def expand_methods(names: Sequence[str], domain: str = "vision") -> dict[str, str]:
    """Label -> name; a `*` stands for methods (no presets) that suit vision models."""
    known = list_methods()
    presets = list_configs("method", domain)
    found: dict[str, str] = {}
    for name in names:
        if "*" in name:
            matches = {each: each for each in known if fnmatchcase(each, name) and suits_vision(each)}
        else:
            MethodChoice.accepts(name)  # says what is wrong with an unknown name
            matches = {slug(name if name in known or name in presets else Path(name).stem): name}
        if not matches:
            raise PeftError(f'no method matches "{name}": see `list methods`.')
        for label, method in matches.items():
            if found.setdefault(label, method) != method:
                raise PeftError(
                    f'two methods are called "{label}" ({found[label]} and {method}): rename one of the files.'
                )
    if not found:
        raise PeftError("a sweep needs methods: give --methods linear lora, for instance.")
    return found


def suits_vision(name: str) -> bool:
    """Whether it is a method for pictures and no other program's, and needs nothing that only a user can give."""
    method = MethodChoice.accepts(name)
    settings = inspect.signature(method).parameters
    needed = "frames" in settings or any(each.default is each.empty for each in settings.values())
    return method.__module__.partition(".")[0] in ("peft_core", "vision_peft") and not needed


def assignments(
    flag: str, words: Sequence[str], methods: dict[str, str], check: Callable[[str, str], None]
) -> dict[str, list[tuple[str, str]]]:
    """Label -> (option, value) in order, from `OPTION=VALUE` and `METHOD:OPTION=VALUE`; `method.X` goes to those that
    have X, and what is said of one method goes over what is said of all. `check(flag, option)` judges other options."""
    of_method = {label: list(hints(MethodChoice.accepts(name))) for label, name in methods.items()}
    result: dict[str, dict[str, str]] = {label: {} for label in methods}
    for word in sorted(words, key=lambda word: ":" in word.partition("=")[0]):
        key, equals, value = word.partition("=")
        label, colon, option = key.rpartition(":")
        if not equals or not value:
            raise PeftError(f'{flag} takes OPTION=VALUE or METHOD:OPTION=VALUE, not "{word}".')
        if colon and label not in methods:
            raise PeftError(f'{flag} {word}: the sweep has no method "{label}"{nearest(label, methods)}.')
        chosen = [label] if colon else list(methods)
        group, _, inner = option.partition(".")
        if group == "method" and inner:
            having = [each for each in chosen if inner in of_method[each]]
            if not having:
                known = dict.fromkeys(f"method.{name}" for each in chosen for name in of_method[each])
                raise PeftError(f'{flag} {word}: none of {", ".join(chosen)} has "{inner}"{nearest(option, known)}.')
            chosen = having
        else:
            check(flag, option)
        for each in chosen:
            result[each][option] = value
    return {label: list(pairs.items()) for label, pairs in result.items()}


def check_option(flag: str, option: str, task: str, decided: frozenset[str]) -> None:
    group, dot, _ = option.partition(".")
    if option in decided or (dot and group in decided and (group != "data" or flag == "--grid")):
        why = (
            "has its own option in a sweep"
            if group in ("data", "method", "backbone", "protocol")
            else "is decided by it"
        )
        raise PeftError(f"{flag} cannot set {option}, which {why}: see `sweep --help`.")
    groups = {name: hint for name, hint in fit.hints.items() if is_choice(hint) and not hint.named}
    known = [name for name in fit.parameters if name not in ("data", "method", *groups)]
    known += [f"data.{name}" for name in hints(Data.accepts(task))]
    for name, hint in groups.items():
        known += [f"{name}.{each}" for each in hints(hint.accepts("")) if each not in hint.hidden]
    if option not in known:
        raise PeftError(f'{flag} {option}: fit has no option "{option}"{nearest(option, known)}.')


def split_values(text: str) -> list[str]:
    """Values between commas; a comma within brackets belongs to a value."""
    return [value.strip() for value in re.split(r",(?![^\[]*\])", text) if value.strip()]


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
            fit.resolve([("", settings | {"out": "-"})])


def slug(text: str) -> str:
    return re.sub(r"[^\w.=,+-]", "_", text.strip("./~").replace("/", "_"))
