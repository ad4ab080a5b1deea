"""The end of a run: the figures that every kind of run has, and its files, results.json last."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from peft_core.files import read_text
from peft_core.jobs.reports import page as report
from peft_core.jobs.runs.folder import CONFIG, RunFolder
from peft_core.jobs.runs.machine import peak_memory
from peft_core.versions import versions


def measured(results: dict[str, Any]) -> dict[str, Any]:
    """The results with `peak_memory` and `versions`."""
    return results | {"peak_memory": peak_memory(), "versions": versions()}


def method_words(method: Mapping[str, Any]) -> str:
    """`lora (rank 8, alpha 16)`, without settings that are None."""
    settings = ", ".join(f"{key} {value}" for key, value in method.items() if key != "name" and value is not None)
    return f"{method['name']} ({settings})"


def closing_rows(results: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The last rows of a report's first table."""
    memory = results["peak_memory"]
    return [
        ("peak memory", f"{memory['bytes'] / 2**20:,.0f} MiB ({memory['of']})"),
        ("seed", str(results["seed"])),
        ("versions", ", ".join(f"{name} {version}" for name, version in results["versions"].items())),
    ]


def write_outcome(
    folder: RunFolder,
    results: dict[str, Any],
    files: dict[str, bytes],
    title: str,
    lead: str,
    sections: list[tuple[str, str]],
) -> dict[str, Any]:
    """Writes files, report.html of (heading, HTML) sections with the config at its end, and at last results.json: a
    folder that has it is finished. Returns the results."""
    sections = [*sections, ("Config", report.preformatted(read_text(folder.path / CONFIG)))]
    folder.write(files | {"report.html": report.page(title, lead, sections)})
    folder.write_results(results)
    return results
