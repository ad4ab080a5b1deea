"""What a protocol trains, what it scores, and the table it makes of the accuracies.

No protocol chooses anything on test pictures: the settings are those of the recipe, alike for all data sets, the last
epoch is scored, and tip_adapter's α and β come from val.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from statistics import mean, stdev
from typing import Any

from clip_peft.training.few_shot import Classes
from peft_core.errors import PeftError
from peft_core.registry import make_method

PROTOCOLS = {
    "base_to_new": "train on the first half of the labels, score it and the other half apart; H of the averages",
    "all_classes": "train on the first half of the labels, score all labels as one set of names",
    "few_shot": "train on 1, 2, 4, 8 and 16 pictures a class",
    "cross_dataset": "train on one data set, score it and others with their own names",
    "domain_generalisation": "train on one data set, score it and its variants (ImageNet's, where none are given)",
    "no_validation": "as few_shot, without val: caches choose their strengths on training pictures, each left out in turn",
    "imbalanced": "as no_validation, on as many pictures drawn whatever their class",
    "elevater": "train on five pictures a class, seeds 0 1 2, grafts in the image tower alone; the mean over data sets",
}
SHOTS = (1, 2, 4, 8, 16)
AGAINST_SHOTS = ("few_shot", "no_validation", "imbalanced")
OPTIONS: dict[str, dict[str, str]] = {
    "no_validation": {"choose_on": "train"}, "imbalanced": {"choose_on": "train", "spread": "natural"},
}  # fmt: skip
"""What a protocol sets of fit's options. For that few-shot results should need no validation pictures: Silva-Rodríguez et al., "A
Closer Look at the Few-Shot Adaptation of Large Vision-Language Models", CVPR 2024 (2312.12730); nor balanced classes: "Few-Shot,
Now for Real", 2025 (2506.17500)."""
CROSS = ("caltech101", "oxford_pets", "stanford_cars", "oxford_flowers", "food101", "fgvc_aircraft", "sun397", "dtd",
         "eurosat", "ucf101")  # fmt: skip
VARIANTS = ("imagenetv2", "imagenet_sketch", "imagenet_a", "imagenet_r")
Row = dict[str, object]


@dataclass(frozen=True)
class Trial:
    """One run: what it is trained on, and what it is scored on, as (column, data set or None for its own, classes)."""

    data: str
    method: str
    shots: int
    seed: int
    classes: Classes
    scored: tuple[tuple[str, str | None, Classes], ...]
    options: tuple[tuple[str, str], ...] = ()

    @property
    def task(self) -> str:
        return self.data

    def __str__(self) -> str:
        return f"{self.data} {self.method} {self.shots} shots seed {self.seed}"


def seeds_of(protocol: str | None) -> list[int]:
    """The seeds that its published figures are means over."""
    return [0, 1, 2] if protocol == "elevater" else [1, 2, 3]


def trials(
    protocol: str, data: Sequence[str], targets: Sequence[str], methods: Sequence[str], seeds: Sequence[int],
    shots: Sequence[int],
) -> Iterator[Trial]:  # fmt: skip
    """Every run of a protocol, seeds outermost so that a table of all methods comes early.

    Raises:
        PeftError: the protocol trains on one data set and several are given, or has nothing to score them on.
    """
    transfer = protocol in ("cross_dataset", "domain_generalisation")
    if transfer and len(data) != 1:
        raise PeftError(f"{protocol} trains on one data set, not {len(data)}: give the others as --targets.")
    if targets and not transfer:
        raise PeftError(f"{protocol} scores the data sets that it trains on: leave --targets out.")
    if transfer and not targets:
        if data[0] != "coop/imagenet":
            raise PeftError(f"{protocol} from {data[0]} needs --targets, the data sets to score.")
        targets = [f"coop/{name}" for name in (CROSS if protocol == "cross_dataset" else VARIANTS)]
    scored: list[tuple[str, str | None, Classes]] = [("accuracy", None, "all")]
    if protocol == "base_to_new":
        scored = [("base", None, "base"), ("new", None, "new")]
    elif protocol == "all_classes":
        scored = [("all", None, "all")]
    elif transfer:
        scored = [("source", None, "all"), *((target, target, "all") for target in targets)]
    classes: Classes = "base" if protocol in ("base_to_new", "all_classes") else "all"
    shots = shots or (SHOTS if protocol in AGAINST_SHOTS else (5,) if protocol == "elevater" else (16,))
    options = {method: OPTIONS.get(protocol, {}) for method in methods}
    if protocol == "elevater":
        options = {m: {"method.tower": "image"} if make_method(m).grafts else {} for m in methods}
    for seed in seeds:
        for one in data:
            for count in shots:
                for method in methods:
                    own = tuple(options[method].items())
                    yield Trial(one, method, count, seed, classes, tuple(scored), own)


def on_val(trial: Trial, *options: tuple[str, str]) -> Trial:
    """The same run with these options, scored on val alone, to choose by."""
    own = (*trial.options, ("eval_on", "val"), *options)
    return replace(trial, scored=(("accuracy", None, trial.classes),), options=own)


def unscored(trial: Trial) -> list[Row]:
    """The rows of a run that failed."""
    return [row_of(trial, column, {}, {}) for column, _, _ in trial.scored]


def row_of(trial: Trial, column: str, results: dict[str, Any], scores: dict[str, Any]) -> Row:
    """A row of results.csv, from the run's results and its scores on one column; none where it was not scored."""
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
        "train_seconds": results.get("train_seconds"),
        "use_seconds": results.get("use_seconds"),
        "lr": dict(trial.options).get("lr"),
        "learns": results.get("learns"),
        "bins": scores.get("bins", []),
    }


def harmonic(base: float | None, new: float | None) -> float | None:
    """H = 2bn / (b + n)."""
    return 2 * base * new / (base + new) if base and new else None


def table(protocol: str, rows: Sequence[Row]) -> tuple[list[str], list[list[str]]]:
    """Header and lines: the mean over seeds of each data set's accuracy in %, ± its standard deviation, and behind them the
    mean over data sets; H is that of the averages, as papers report it."""
    methods = list(dict.fromkeys(str(row["method"]) for row in rows))
    places = list(dict.fromkeys((str(row["data"]), str(row["column"]), int(str(row["shots"]))) for row in rows))
    header, lines = ["method"], [[method] for method in methods]
    columns = list(dict.fromkeys(column for _, column, _ in places))
    for one in dict.fromkeys(data for data, _, _ in places):
        for data, column, shots in (place for place in places if place[0] == one):
            header.append(f"{data} {label(protocol, column, shots)}")
            for line, method in zip(lines, methods, strict=True):
                line.append(cell(accuracies(rows, method, column, data, shots)))
        if protocol == "base_to_new":
            header.append(f"{one} H")
            for line, method in zip(lines, methods, strict=True):
                pair = [_mean(accuracies(rows, method, column, one)) for column in columns]
                line.append(_percent(harmonic(*pair)))
    for name, numbers in averages(protocol, rows).items():
        header.append(name)
        for line, method in zip(lines, methods, strict=True):
            line.append(_percent(numbers.get(method)))
    for name, numbers in costs(rows).items():
        if numbers:
            header.append(name)
            for line, method in zip(lines, methods, strict=True):
                line.append(numbers.get(method, "–"))
    return header, lines


def costs(rows: Sequence[Row]) -> dict[str, dict[str, str]]:
    """Column → method → what it costs: the rate it was trained at where rates were chosen, what trains, and seconds of the
    runs with the most shots."""
    most = max((int(str(row["shots"])) for row in rows), default=0)
    result: dict[str, dict[str, str]] = {
        "lr": {},
        "trained": {},
        f"training at {most} shots, s": {},
        "use, ms a picture": {},
    }
    rate, trained, training, use = result.values()
    for method in dict.fromkeys(str(row["method"]) for row in rows):
        own: list[dict[str, Any]] = [row for row in rows if (row["method"], row["shots"]) == (method, most)]
        if lr := next((row["lr"] for row in own if row.get("lr")), None):
            rate[method] = str(lr)
        if counts := [row["trained_parameters"] for row in own if row.get("trained_parameters") is not None]:
            trained[method] = f"{max(counts):,}"
        if seconds := [row["train_seconds"] for row in own if row.get("train_seconds") is not None]:
            training[method] = f"{mean(seconds):.1f}"
        if seconds := [row["use_seconds"] for row in own if row.get("use_seconds") is not None]:
            use[method] = f"{1000 * mean(seconds):.2f}"
    return result


def averages(protocol: str, rows: Sequence[Row]) -> dict[str, dict[str, float | None]]:
    """Column → method → the mean over data sets of the means over seeds; None where one of them is missing."""
    methods = list(dict.fromkeys(str(row["method"]) for row in rows))
    data = list(dict.fromkeys(str(row["data"]) for row in rows))
    if protocol in ("cross_dataset", "domain_generalisation"):
        targets = list(dict.fromkeys(str(row["column"]) for row in rows if row["column"] != "source"))
        found = {m: [_mean(accuracies(rows, m, target)) for target in targets] for m in methods}
        return {"mean of targets": {m: _mean_of_all(values) for m, values in found.items()}}
    result: dict[str, dict[str, float | None]] = {}
    for column, shots in dict.fromkeys((str(row["column"]), int(str(row["shots"]))) for row in rows):
        means = {m: [_mean(accuracies(rows, m, column, one, shots)) for one in data] for m in methods}
        result[f"mean {label(protocol, column, shots)}"] = {m: _mean_of_all(values) for m, values in means.items()}
    if protocol == "base_to_new":
        base, new = result["mean base"], result["mean new"]
        result["H of means"] = {m: harmonic(base[m], new[m]) for m in methods}
    return result


def label(protocol: str, column: str, shots: int) -> str:
    return f"{shots} shots" if protocol in AGAINST_SHOTS else column


def accuracies(
    rows: Sequence[Row], method: str, column: str, data: str | None = None, shots: int | None = None
) -> list:
    """Over seeds; None stands for a method that cannot name these classes, or a run that failed."""
    return [
        row["accuracy"]
        for row in rows
        if (row["method"], row["column"]) == (method, column)
        and data in (None, row["data"])
        and shots in (None, row["shots"])
    ]


def cell(values: Sequence[float | None]) -> str:
    known = [value for value in values if value is not None]
    if not known or len(known) < len(values):
        return "–"
    return _percent(mean(known)) + (f" ± {100 * stdev(known):.2f}" if len(known) > 1 else "")


def spread(values: Sequence[float]) -> float:
    return stdev(values) if len(values) > 1 else 0.0


def _mean(values: Sequence[float | None]) -> float | None:
    return _mean_of_all(values) if values else None


def _mean_of_all(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return mean(known) if known and len(known) == len(values) else None


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.2f}"
