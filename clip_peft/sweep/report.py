"""The files of a protocol's table: results.csv, table.md, its figures, and report.html with all of them."""

from __future__ import annotations

import datetime
import os
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from clip_peft.plots import against_shots, base_new_dots, reliability_diagram
from clip_peft.sweep.protocols import AGAINST_SHOTS, PROTOCOLS, Row, accuracies, averages, spread, table
from clip_peft.sweep.rates import Tried
from peft_core.files import write_files
from peft_core.jobs.reports import page as report
from peft_core.jobs.sweep.code import code_hash
from peft_core.jobs.sweep.jobs import slug
from peft_core.versions import versions


def write_tables(folder: Path, plan: Mapping[str, Any], rows: Sequence[Row], failed: Sequence[str], state: str) -> None:
    """Writes them from the rows that there are."""
    protocol = plan["protocol"]
    header, lines = table(protocol, rows)
    marks = ["| " + " | ".join(cells) + " |" for cells in (header, ["---"] * len(header), *lines)]
    about = f"{PROTOCOLS[protocol]}; accuracy in %, mean ± standard deviation over seeds; {state}"
    if plan["rates"]:
        times = ", ".join(f"{rate:g}" for rate in plan["rates"])
        about += f"; learning rates chosen on val among {times} × the recipes'"
    about += f"; {stamp(plan['backbone'])}"
    broken = "".join(f"\n- failed: {problem}" for problem in failed)
    drawn = figures(protocol, rows)
    sections = [("Table", report.table(lines, header))]
    sections += [(heading, report.figure(image, heading)) for heading, _, image in drawn]
    if failed:
        sections.append(("Failed", report.table([[problem] for problem in failed])))
    plain = [{key: value for key, value in row.items() if key != "bins"} for row in rows]
    write_files(
        folder,
        {
            "results.csv": report.csv_bytes(plain),
            "table.md": ("\n".join(marks) + f"\n\n{about}.{broken}\n").encode(),
            "report.html": report.page(protocol.replace("_", " "), about, sections),
            **{f"{name}.png": image for _, name, image in drawn},
        },
    )


def stamp(backbone: str) -> str:
    """What a table was made by: backbone, code, libraries, processor, day."""
    used = " ".join(
        f"{name} {version}" for name, version in versions().items() if name in ("python", "torch", "open_clip_torch")
    )
    code, where = code_hash("clip_peft.training.job"), platform.processor() or platform.machine()
    return f"{backbone}, code {code}, {used}, {where}, {os.cpu_count()} processors, {datetime.date.today()}"


def write_rates(folder: Path, found: Mapping[Tried, Sequence[Row]], lr: Mapping[str, float]) -> None:
    """rates.csv: each rate that was tried, and its accuracy on val."""
    rows = [
        {"method": tried.method, "times": tried.times, "lr": f"{tried.times * lr[tried.method]:.6g}",
         "data": row["data"], "val_accuracy": row["accuracy"]}
        for tried, each in found.items() if tried.method in lr for row in each
    ]  # fmt: skip
    write_files(folder, {"rates.csv": report.csv_bytes(rows)})


def figures(protocol: str, rows: Sequence[Row]) -> list[tuple[str, str, bytes]]:
    """Heading, file name and PNG of each."""
    methods = list(dict.fromkeys(str(row["method"]) for row in rows))
    made: list[tuple[str, str, bytes]] = []
    if protocol in AGAINST_SHOTS:
        lines: dict[str, dict[int, tuple[float, float]]] = {}
        for method in methods:
            for shots in sorted({int(str(row["shots"])) for row in rows}):
                known = [value for value in accuracies(rows, method, "accuracy", None, shots) if value is not None]
                if known:
                    points = lines.setdefault(method, {})
                    points[shots] = (100 * sum(known) / len(known), 100 * spread(known))
        if lines:
            made.append(("Accuracy against shots", "shots", against_shots(lines)))
    if protocol == "base_to_new":
        harmonic = averages(protocol, rows)["H of means"]
        dots = {
            method: (
                *(over_data(rows, method, column) for column in ("base", "new")),
                None if h is None else (100 * h, 0.0),
            )
            for method, h in harmonic.items()
        }
        made.append(("Base and new", "base_new", base_new_dots(dots)))
    for column in dict.fromkeys(str(row["column"]) for row in rows):
        bins = {m: found for m in methods if (found := joined(rows, m, column))}
        if bins:
            heading = f"Can the probabilities be trusted? ({column})"
            made.append((heading, f"reliability_{slug(column)}", reliability_diagram(bins)))
    return made


def over_data(rows: Sequence[Row], method: str, column: str) -> tuple[float, float] | None:
    """The mean over data sets in %, and its spread over seeds; None where a run has no score."""
    seeds: dict[Any, list[float]] = {}
    for row in rows:
        if (row["method"], row["column"]) == (method, column):
            if row["accuracy"] is None:
                return None
            seeds.setdefault(row["seed"], []).append(100 * row["accuracy"])  # type: ignore[operator]
    means = [mean(values) for values in seeds.values()]
    return (mean(means), spread(means)) if means else None


def joined(rows: Sequence[Row], method: str, column: str) -> list[dict[str, Any]]:
    """The bins of all runs of a method together."""
    total: list[dict[str, Any]] = []
    for row in rows:
        bins: Any = row["bins"]
        if (row["method"], row["column"]) != (method, column) or not bins:
            continue
        total = total or [{"count": 0, "accuracy": 0.0, "confidence": 0.0} for _ in bins]
        for into, one in zip(total, bins, strict=True):
            into["count"] += one["count"]
            for key in ("accuracy", "confidence"):
                into[key] += one["count"] * (one[key] or 0.0)
    for into in total:
        for key in ("accuracy", "confidence"):
            into[key] = into[key] / into["count"] if into["count"] else None
    return total
