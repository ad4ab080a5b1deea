"""The learning rate of each method, chosen on val before a protocol's runs begin."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import mean
from typing import Any

from clip_peft.sweep.protocols import Row, Trial, on_val


@dataclass(frozen=True)
class Tried:
    """A method's rate: so many times the recipe's."""

    method: str
    times: float


def ordered(rates: Sequence[float]) -> list[float]:
    """The recipe's own rate and those nearest to it first, so that they win where accuracies are the same."""
    return sorted(dict.fromkeys(rates), key=lambda rate: (abs(math.log(rate)), rate))


def candidates(
    trials: Iterable[Trial], lr: Mapping[str, float], times: Sequence[float]
) -> Iterator[tuple[Tried, Trial]]:
    """What is run for the choice: of each data set's trials with the most shots the first seed's, scored on val, at each rate.

    Args:
        lr: method → its recipe's rate; methods that are not named have none to choose.
    """
    first: dict[tuple[str, str], Trial] = {}
    for trial in trials:
        kept = first.setdefault((trial.data, trial.method), trial)
        if trial.shots > kept.shots:
            first[trial.data, trial.method] = trial
    for trial in first.values():
        if trial.method in lr:
            for rate in times:
                yield Tried(trial.method, rate), on_val(trial, ("lr", f"{rate * lr[trial.method]:.6g}"))


def best(found: Mapping[Tried, Sequence[Row]]) -> dict[str, Tried]:
    """Method → the rate of the highest mean accuracy on the val pictures of all data sets, the first of those that are alike;
    one that failed on a data set is none."""
    result: dict[str, tuple[float, Tried]] = {}
    for tried, rows in found.items():
        values: list[Any] = [row["accuracy"] for row in rows]
        if not values or any(value is None for value in values):
            continue
        if tried.method not in result or mean(values) > result[tried.method][0]:
            result[tried.method] = mean(values), tried
    return {method: tried for method, (_, tried) in result.items()}


def at_rates(trial: Trial, chosen: Mapping[str, str]) -> Trial:
    """The trial with its method's chosen rate, if there is one."""
    lr = chosen.get(trial.method)
    return trial if lr is None else replace(trial, options=(*trial.options, ("lr", lr)))
