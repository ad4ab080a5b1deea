"""results.json and report.html of the whole: the search, the chosen subnet, and what it was compared with."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from peft_core.jobs.reports import page as report
from peft_core.jobs.runs.folder import RESULTS, RunFolder
from peft_core.jobs.runs.outcome import measured, write_outcome
from vision_peft.methods.noah import NOAH
from vision_peft.noah.picture import subnet_picture

HEADER = ("what is trained", "inserted parameters", "accuracy on test, %")


def row(results: Mapping[str, Any]) -> dict[str, Any]:
    """Of a finished `fit`, what the comparison needs."""
    return {
        "accuracy": results["accuracy"],
        "inserted": results["parameters"]["inserted"],
        "pictures": results["pictures"].get("test", 0),
        "seconds": results["seconds"]["train"],
    }


def verdict(found: Mapping[str, dict[str, Any]]) -> str:
    """Whether search paid in this run, in one sentence."""
    others = {name: each for name, each in found.items() if name != "noah"}
    if not others or found["noah"]["accuracy"] is None:
        return ""
    name, best = max(others.items(), key=lambda item: item[1]["accuracy"])
    ours, theirs, count = found["noah"]["accuracy"], best["accuracy"], found["noah"]["pictures"]
    error = 100 * math.sqrt((ours * (1 - ours) + theirs * (1 - theirs)) / max(1, count))
    gain = 100 * (ours - theirs)
    said = "pays" if gain > 2 * error else "costs accuracy" if gain < -2 * error else "makes no difference that shows"
    return (
        f"Search {said} here: {gain:+.1f} points against {name}, the best of the others, where one run tells no less than "
        f"{2 * error:.1f} points apart (seeds add to that)."
    )


def write(folder: RunFolder, method: NOAH, found: dict[str, dict[str, Any]], about: dict[str, Any]) -> dict[str, Any]:
    """Writes the files of the whole, results.json last. Returns the results.

    Args:
        found: noah and the baselines -> `row`.
        about: further results: data, backbone, seed, budget.
    """
    search = folder.path / "search"
    results = about | {"chosen": method.widths, "found": found, "verdict": verdict(found)}
    rows = [(name, each["inserted"], _percent(each["accuracy"])) for name, each in found.items()]
    sections = [("Result", report.table(rows, HEADER) + (f"<p>{results['verdict']}</p>" if results["verdict"] else ""))]
    chart = subnet_picture(method.widths)
    if (search / RESULTS).is_file():
        results["search"] = json.loads((search / RESULTS).read_text(encoding="utf-8"))
        picture = (search / "search.png").read_bytes()
        sections.append(("Search", search_words(results["search"]) + report.figure(picture, "candidates and front")))
    sections.append(("Chosen widths", report.figure(chart, "width of each method in each block")))
    lead = (
        f"accuracy {_percent(found['noah']['accuracy'])} % on test, {found['noah']['inserted']:,} inserted parameters"
    )
    title = f"{about['data']}, NOAH on {about['backbone']}"
    return write_outcome(folder, measured(results), {}, title, lead, sections)


def search_words(search: Mapping[str, Any]) -> str:
    return (
        f"<p>{search['candidates']:,} subnets scored on {search['pictures']:,} pictures of val with the supernet's weights; the "
        f"chosen one has {100 * search['accuracy']:.1f} % there and {search['parameters']:,} parameters.</p>"
    )


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.1f}"


def table(found: Mapping[str, dict[str, Any]]) -> str:
    """The comparison as lines for a terminal."""
    width = max(map(len, found))
    return "\n".join(
        f"  {name:<{width}}  {_percent(each['accuracy']):>5} %  {each['inserted']:>9,} parameters"
        for name, each in found.items()
    )


def finished_row(folder: Path) -> dict[str, Any] | None:
    """`row` of a folder, None where it is not finished."""
    path = folder / RESULTS
    return row(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else None


def finished_rows(folder: Path) -> dict[str, dict[str, Any]]:
    """Name -> `row` of the finished runs in a folder."""
    found = {path.parent.name: finished_row(path.parent) for path in sorted(folder.glob(f"*/{RESULTS}"))}
    return {name: each for name, each in found.items() if each}
