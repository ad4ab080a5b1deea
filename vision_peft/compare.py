"""`vision_peft compare`: finished runs on one data set, side by side."""

from __future__ import annotations

import json
import statistics
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from peft_core.errors import PeftError
from peft_core.files import write_files
from peft_core.jobs.cli.command import command
from peft_core.jobs.reports import plots
from peft_core.jobs.runs.folder import RESULTS, read_results
from peft_core.jobs.runs.load import program_of
from vision_peft.tasks import kind_of

ALIKE = ("data", "task", "protocol", "evaluated_on", "backbone")
NEEDED = (*ALIKE, "method", "seed", "parameters", "seconds")


@command("vision")
def compare(runs: list[str], *, out: str | None = None) -> str:
    """Print a table of finished runs on one data set; runs that differ in their seed alone share a row, with the spread.

    Args:
        runs: Run folders, and folders of runs; what is no finished run is left out.
        out: Where to write compare.md and compare.png too.
    """
    found = [read(run) for run in finished(runs)]
    if not found:
        raise PeftError(f"none of {', '.join(runs)} holds a finished run: `vision_peft fit --out …` makes one.")
    for key in ALIKE:
        values = sorted({str(one[key]) for one in found})
        if len(values) > 1:
            raise PeftError(f"these runs cannot be compared: their {key} differs ({', '.join(values)}).")
    rows = grouped(found)
    text = table(rows, found[0])
    print(text)
    if out is not None:
        write_files(Path(out), {"compare.md": f"{text}\n".encode(), "compare.png": picture(rows, found[0])})
        print(f"\nwritten: {Path(out) / 'compare.md'}, {Path(out) / 'compare.png'}")
    return text


def finished(paths: Sequence[str]) -> list[Path]:
    """The finished runs among these folders, and those right inside the others.

    Raises:
        PeftError: a folder that does not exist.
    """
    found: list[Path] = []
    for path in (Path(each).expanduser() for each in paths):
        if not path.is_dir():
            raise PeftError(f"there is no folder {path}: give run folders, or a folder of them.")
        inside = [path] if (path / RESULTS).is_file() else sorted(path.iterdir())
        found += [each for each in inside if (each / RESULTS).is_file()]
    return list(dict.fromkeys(found))


def read(run: Path) -> dict[str, Any]:
    """A run's results.

    Raises:
        PeftError: they are damaged, of another program, or without a score.
    """
    program_of(run, ("vision_peft",))
    results = read_results(run)
    results.setdefault("task", "classify")
    results["figure"] = kind_of(results["task"]).score
    missing = [key for key in (*NEEDED, results["figure"]) if key not in results]
    if missing:
        raise PeftError(f"{run / RESULTS} is damaged: it has no {missing[0]}.")
    if results[results["figure"]] is None:
        raise PeftError(f"{run} was not scored, so there is nothing to compare.")
    return results


def grouped(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row a method and its settings, best first; `spread` is the standard deviation over seeds."""
    groups = defaultdict(list)
    for run in runs:
        groups[json.dumps(run["method"], sort_keys=True)].append(run)
    rows = []
    for members in groups.values():
        accuracy = [run[run["figure"]] for run in members]
        rows.append(
            {
                "method": label(members[0]["method"]),
                "accuracy": statistics.mean(accuracy),
                "spread": statistics.stdev(accuracy) if len(accuracy) > 1 else None,
                "seeds": len({run["seed"] for run in members}),
                "inserted": members[0]["parameters"]["inserted"],
                "head": members[0]["parameters"]["head"],
                "total": members[0]["parameters"]["total"],
                "seconds": statistics.mean(run["seconds"]["train"] for run in members),
            }
        )
    return sorted(rows, key=lambda row: -row["accuracy"])


def label(method: dict[str, Any]) -> str:
    settings = {key: value for key, value in method.items() if key != "name" and value is not None}
    short = ", ".join(
        f"{key} {' '.join(map(str, v)) if isinstance(v, list | tuple) else v}" for key, v in settings.items()
    )
    return f"{method['name']} ({short})" if short else method["name"]


def table(rows: list[dict[str, Any]], one: dict[str, Any]) -> str:
    lines = [
        f"{one['data']}, backbone {one['backbone']}, {one['protocol']} protocol, scored on {one['evaluated_on']}",
        "",
        f"| method | {one['figure']} | seeds | inserted | head | of all | training |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        accuracy = f"{100 * row['accuracy']:.1f} %" if one["figure"] == "accuracy" else f"{row['accuracy']:.3f}"
        if row["spread"] is not None:
            accuracy += f" ± {100 * row['spread']:.1f}" if one["figure"] == "accuracy" else f" ± {row['spread']:.3f}"
        share = 100 * row["inserted"] / row["total"]
        lines.append(
            f"| {row['method']} | {accuracy} | {row['seeds']} | {row['inserted']:,} | {row['head']:,} | {share:.2f} % "
            f"| {row['seconds']:.0f} s |"
        )
    return "\n".join(lines)


def picture(rows: list[dict[str, Any]], one: dict[str, Any]) -> bytes:
    """PNG: the figure against inserted parameters, with the spread over seeds."""
    points = [(row["method"].split(" (")[0], row["inserted"], row["accuracy"], row["spread"] or 0.0) for row in rows]
    return plots.scatter(points, "inserted parameters", f"{one['figure']} on {one['data']}")
