"""Finished runs side by side, a table a data set: what every classifier's `compare` prints and draws."""

from __future__ import annotations

import json
import statistics
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from peft_core.errors import PeftError
from peft_core.files import write_files
from peft_core.jobs.reports import plots
from peft_core.jobs.runs.folder import CONFIG, RESULTS, read_results, read_run_config
from peft_core.jobs.runs.load import program_of
from peft_core.registry import find_method, method_files
from peft_core.values import defaults_of

Results = Mapping[str, Any]
NEEDED = ("method", "seed", "parameters", "seconds")


class NoPlace(PeftError):
    """A run that a table of scores has no row for."""


class Comparison(NamedTuple):
    """What a program compares.

    Args:
        program: whose runs.
        alike: results that are the same in all runs of a table.
        apart: results besides the method that keep runs in rows of their own.
        title: results that the runs share -> the table's first line.
        columns: heading -> a cell, from the results of the runs in a row, which differ in their seed alone.
        size: results -> the parameters that the picture shows.
        of_size: what these are.
        before: what results say that are of a time before they said it.
        figure: results -> which of them is compared, the higher the better.
        other: results -> what a run is that this table has no place for, and what to look at; None where it has.
    """

    program: str
    alike: tuple[str, ...]
    apart: tuple[str, ...]
    title: Callable[[Results], str]
    columns: Mapping[str, Callable[[Sequence[Results]], str]]
    size: Callable[[Results], int]
    of_size: str
    before: Results = {}
    figure: Callable[[Results], str] = lambda one: "accuracy"
    other: Callable[[Results], str | None] = lambda one: None

    def carry_out(self, runs: Sequence[str], out: str | None) -> str:
        """Prints a table of each data set (and whatever else must be alike), which it gives back; with `out` also writes
        compare.md and compare.png there, a picture a table.

        Raises:
            PeftError: no finished run among them, or one named outright that has no place in a table.
        """
        folder = None if out is None else Path(out).expanduser()
        if folder is not None and folder.exists() and not folder.is_dir():
            raise PeftError(f"{folder} is a file: give --out a folder.")
        found, left_out = [], []
        for run, named in finished(runs, self.program).items():
            try:
                found.append(self.read(run))
            except NoPlace as reason:
                if named:
                    raise
                left_out.append(f"left out: {reason}")
        if not found:
            why = f" ({left_out[0].removesuffix('.')})" if left_out else ""
            raise PeftError(
                f"none of {', '.join(runs)} holds a finished run{why}: `{self.program} fit --out …` makes one."
            )
        apart = defaultdict(list)
        for one in found:
            apart[tuple(str(one[key]) for key in self.alike)].append(one)
        tables = [self.grouped(own) for own in apart.values()]
        text = "\n\n".join(map(self.table, tables))
        print(text)
        if left_out:
            print("", *left_out, sep="\n")
        if folder is not None:
            numbers = [""] if len(tables) == 1 else [f"-{number}" for number in range(1, len(tables) + 1)]
            pictures = {
                f"compare{number}.png": self.picture(rows) for number, rows in zip(numbers, tables, strict=True)
            }
            write_files(folder, {"compare.md": f"{text}\n".encode()} | pictures)
            print(f"\nwritten: {', '.join(str(folder / name) for name in ('compare.md', *pictures))}")
        return text

    def read(self, run: Path) -> Results:
        """A run's results.

        Raises:
            PeftError: they are damaged, of another program or kind, or without a score.
        """
        program_of(run, (self.program,))
        results = {**self.before, **read_results(run)}
        if (kind := self.other(results)) is not None:
            raise NoPlace(f"{run} is {kind}.")
        results["figure"] = self.figure(results)
        missing = [key for key in (*self.alike, *self.apart, *NEEDED, results["figure"]) if key not in results]
        if missing:
            raise PeftError(f"{run / RESULTS} is damaged: it has no {missing[0]}.")
        if results[results["figure"]] is None:
            raise NoPlace(f"{run} was not scored, so there is nothing to compare.")
        return results

    def grouped(self, runs: Sequence[Results]) -> list[list[Results]]:
        """The runs of a method and its settings together, the best first."""
        groups = defaultdict(list)
        for run in runs:
            groups[json.dumps([run["method"], *(run[key] for key in self.apart)], sort_keys=True)].append(run)
        return sorted(groups.values(), key=lambda own: -mean(own))

    def table(self, rows: Sequence[Sequence[Results]]) -> str:
        figure = rows[0][0]["figure"]
        names = ["method", figure, "seeds", *self.columns]
        lines = [self.title(rows[0][0]), "", f"| {' | '.join(names)} |", "|---" * len(names) + "|"]
        for own in rows:
            spread = spread_of(own)
            accuracy = f"{100 * mean(own):.1f} %" if figure == "accuracy" else f"{mean(own):.3f}"
            if spread is not None:
                accuracy += f" ± {100 * spread:.1f}" if figure == "accuracy" else f" ± {spread:.3f}"
            seeds = str(len({run["seed"] for run in own}))
            cells = [label(own[0]["method"]), accuracy, seeds, *(cell(own) for cell in self.columns.values())]
            lines.append(f"| {' | '.join(cells)} |")
        return "\n".join(lines)

    def picture(self, rows: Sequence[Sequence[Results]]) -> bytes:
        """PNG: accuracy against parameters, with the spread over seeds."""
        figure = rows[0][0]["figure"]
        times, unit = (100, ", %") if figure == "accuracy" else (1, "")
        points = [
            (own[0]["method"]["name"], self.size(own[0]), times * mean(own), times * (spread_of(own) or 0.0))
            for own in rows
        ]
        return plots.scatter(points, self.of_size, f"{figure} on {plots.label(rows[0][0]['data'], 40)}{unit}")


def finished(paths: Sequence[str], program: str) -> dict[Path, bool]:
    """The finished runs among these folders (true), and a program's own right inside the others (false).

    Raises:
        PeftError: a folder that does not exist.
    """
    found: dict[Path, bool] = {}
    for path in (Path(each).expanduser() for each in paths):
        if not path.is_dir():
            raise PeftError(f"there is no folder {path}: give run folders, or a folder of them.")
        if (path / RESULTS).is_file():
            found[path] = True
            continue
        for each in sorted(path.iterdir()):
            of_a_run = (each / RESULTS).is_file() and (each / CONFIG).is_file()
            if of_a_run and str(read_run_config(each)["command"]).split()[:1] == [program]:
                found.setdefault(each, False)
    return found


def mean(own: Sequence[Results]) -> float:
    return statistics.mean(run[run["figure"]] for run in own)


def spread_of(own: Sequence[Results]) -> float | None:
    """The standard deviation over seeds."""
    return statistics.stdev(run[run["figure"]] for run in own) if len(own) > 1 else None


def training_time(own: Sequence[Results]) -> str:
    return f"{statistics.mean(run['seconds']['train'] for run in own):.0f} s"


def label(method: Mapping[str, Any]) -> str:
    """`lora (rank 4)`: the settings that are not the method's own."""
    usual = defaults_of(find_method(method["name"])) if method["name"] in method_files() else {}
    settings = {
        key: tuple(value) if isinstance(value, list) else value
        for key, value in method.items()
        if key != "name" and value is not None
    }
    short = ", ".join(
        f"{key} {' '.join(map(str, v)) if isinstance(v, tuple) else v}"
        for key, v in settings.items()
        if key not in usual or v != usual[key]
    )
    name = f"{method['name']} ({short})" if short else method["name"]
    return name.replace("|", "\\|").replace("\n", " ")
