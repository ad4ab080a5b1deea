"""Jobs: data sets × methods × seeds and points of a grid, from what stands on a command line."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from peft_core.config_files import list_configs
from peft_core.errors import PeftError, nearest
from peft_core.jobs.cli.command import Command
from peft_core.jobs.cli.options import MethodChoice, check_key, hints, is_choice
from peft_core.registry import list_methods

Point = tuple[tuple[str, str], ...]
"""Settings of `fit` as (option, value), e.g. (("method.rank", "4"), ("lr", "1e-3"))."""


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


def nested(settings: dict[str, Any], pairs: Iterable[tuple[str, str]]) -> dict[str, Any]:
    """The settings with (option, value) put in, `method.rank` where `method` has its options."""
    for key, value in pairs:
        group, dot, option = key.partition(".")
        if dot:
            settings.setdefault(group, {})[option] = value
        else:
            settings[key] = value
    return settings


def expand_methods(names: Sequence[str], domain: str, suits: Callable[[str], bool]) -> dict[str, str]:
    """Label -> name; a `*` stands for all methods (no presets) that suit.

    Args:
        domain: the folder of the presets.
        suits: whether a method of this name is meant by a `*`.
    """
    known = list_methods()
    presets = list_configs("method", domain)
    found: dict[str, str] = {}
    for name in names:
        if "*" in name:
            matches = {each: each for each in known if fnmatchcase(each, name) and suits(each)}
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


def check_option(
    flag: str, option: str, fit: Command, decided: Iterable[str], choices: Mapping[str, str] | None = None
) -> None:
    """Whether a sweep can set an option of `fit`.

    Args:
        flag: where it stands, for the error.
        decided: options that the sweep itself decides; `trainer.` is all of that group.
        choices: the names that bring options along, as {"data": "world/count"}.

    Raises:
        PeftError: it cannot, or there is none of that name.
    """
    group, dot, _ = option.partition(".")
    if option in decided or (dot and f"{group}." in decided):
        raise PeftError(
            f"{flag} cannot set {option}, which has an option of its own in a sweep, or is decided by it: see `sweep "
            "--help`."
        )
    hint = fit.hints.get(group)
    if dot and is_choice(hint) and hint.named and group not in (choices or {}):
        return  # text_method.rank: its name stands in another word, and `fit` judges both together
    check_key(option, fit.hints, choices or {}, flag)


def grid_points(options: Sequence[tuple[str, str]]) -> list[Point]:
    """Every combination of the values of (option, "value,value"); [()] without options."""
    lists = [[(key, value) for value in split_values(values)] for key, values in options]
    for inner in lists:
        if not inner or len(set(inner)) < len(inner):
            raise PeftError(f"--grid {inner[0][0] if inner else ''} needs values that differ, separated by commas.")
    return [tuple(point) for point in itertools.product(*lists)]


def split_values(text: str) -> list[str]:
    """Values between commas; a comma within brackets belongs to a value."""
    return [value.strip() for value in re.split(r",(?![^\[]*\])", text) if value.strip()]


def slug(text: str) -> str:
    return re.sub(r"[^\w.=,+-]", "_", text.strip("./~").replace("/", "_"))
