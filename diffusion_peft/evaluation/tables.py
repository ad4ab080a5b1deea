"""The files of an evaluation: results.json, results.csv, table.md, report.html."""

from __future__ import annotations

from typing import Any

from diffusion_peft.evaluation.asked import Evaluation
from peft_core.jobs.reports import page as report
from peft_core.jobs.runs.folder import RunFolder
from peft_core.jobs.runs.outcome import write_outcome
from peft_core.versions import versions

WHOLE = ("runs", "parameters")
"""Columns of whole numbers."""


def cell(row: dict[str, Any], key: str) -> str:
    """A mean, ± its standard deviation over runs where there are several."""
    value, spread = row.get(key), row.get(f"{key}_std")
    if value is None:
        return "–"
    if isinstance(value, str) or key in WHOLE:
        return value if isinstance(value, str) else f"{value:,.0f}"
    digits = 3 if abs(value) < 1 else 2
    return f"{value:.{digits}f}" + (f" ± {spread:.{digits}f}" if spread is not None else "")


def markdown(evaluation: Evaluation) -> str:
    cells = [[title for _, title in evaluation.columns]]
    cells += [[cell(row, key) for key, _ in evaluation.columns] for row in evaluation.summary]
    lines = ["| " + " | ".join(line) + " |" for line in cells]
    lines.insert(1, "|" + "---|" + "---:|" * (len(cells[0]) - 1))
    return "\n".join(lines) + "\n"


def write_evaluation(folder: RunFolder, protocol: str, evaluation: Evaluation) -> dict[str, Any]:
    """Writes all of it. Returns what stands in results.json."""
    results = {"protocol": protocol, "headline": evaluation.headline} | evaluation.facts
    results |= {"methods": evaluation.summary, "runs": evaluation.rows, "versions": versions()}
    rows = [[cell(row, key) for key, _ in evaluation.columns] for row in evaluation.summary]
    scored = {key: value for key, value in evaluation.facts.items() if isinstance(value, (str, int, float))}
    sections = [
        ("Methods", report.table(rows, [title for _, title in evaluation.columns]) + "<p>± is over runs.</p>"),
        ("Protocol", report.table([["protocol", protocol], *map(list, scored.items())])),
        *evaluation.sections,
    ]
    files = {"results.csv": report.csv_bytes(evaluation.rows), "table.md": markdown(evaluation).encode()}
    return write_outcome(folder, results, files, f"{protocol} protocol", evaluation.headline, sections)


def show(folder: RunFolder, evaluation: Evaluation) -> None:
    """The table on the screen."""
    print(f"{evaluation.headline}\n{markdown(evaluation)}written: {folder.path / 'report.html'}, table.md, results.csv")
