"""The end of a run: the figures that every kind of run has, and its files, results.json last."""

from __future__ import annotations

import html
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from peft_core.files import read_json, read_text
from peft_core.jobs.reports import page as report
from peft_core.jobs.reports.fonts import isolate
from peft_core.jobs.runs.folder import CONFIG, RATES_PICTURE, SEARCH, RunFolder
from peft_core.jobs.runs.machine import peak_memory
from peft_core.jobs.runs.saying import Row
from peft_core.versions import versions


def measured(results: dict[str, Any]) -> dict[str, Any]:
    """The results with `peak_memory` and `versions`."""
    return results | {"peak_memory": peak_memory(), "versions": versions()}


def method_words(method: Mapping[str, Any]) -> str:
    """`lora (rank 8, alpha 16)`, without settings that are None."""
    settings = ", ".join(f"{key} {value}" for key, value in method.items() if key != "name" and value is not None)
    return f"{method['name']} ({settings})"


def plan(
    method: Mapping[str, Any],
    backbone: str,
    counts: str,
    steps: int,
    epochs: int,
    what: str,
    settings: Mapping[str, Any],
) -> list[Row]:
    """What a run is about to do, for its first words.

    Args:
        counts: what trains, in words.
        epochs: 0 where only steps are counted.
        what: an epoch consists of, in words.
    """
    passes = f"{epochs:,} epoch{'' if epochs == 1 else 's'} of {what}" if epochs else what
    return [
        ("backbone", backbone),
        ("method", method_words(method)),
        ("trains", counts),
        ("steps", f"{steps:,}: {passes}, {settings['batch_size']} a step, lr {settings['lr']:g}"),
    ]


def share_words(trained: int, total: int) -> str:
    """`37,349 of 1,141,829 parameters, 3.27 %`."""
    share = 100 * trained / max(1, total)
    return f"{trained:,} of {total:,} parameters, {share:{'.2g' if share < 10 else '.0f'}} %"


def first_picture(pictures: Any) -> str:
    """A picture that a run was scored on, as a word of a command line; PICTURES where it lies in no file."""
    names = getattr(pictures, "items", None)
    first = names[0] if isinstance(names, Sequence) and len(names) else None
    if not isinstance(first, Path):
        return "PICTURES"
    here = Path.cwd()
    return shlex.quote(str(first.relative_to(here) if first.is_relative_to(here) else first))


def remark_section(results: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The report's section of where the run is not what it seems."""
    found = [isolate(each, results.get("per_class", ())) for each in results.get("remarks", ())]
    return [("Look twice", report.list_of(found))] if found else []


def next_section(folder: RunFolder) -> list[tuple[str, str]]:
    """The report's section of the commands that come next."""
    return [("Use it", report.preformatted("\n".join(folder.next)))] if folder.next else []


def closing_rows(results: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The last rows of a report's first table."""
    memory = results["peak_memory"]
    return [
        ("peak memory", f"{memory['bytes'] / 2**20:,.0f} MiB ({memory['of']})"),
        ("seed", str(results["seed"])),
        ("versions", ", ".join(f"{name} {version}" for name, version in results["versions"].items())),
    ]


TRIED = "tried.json"
"""In the folder `SEARCH`: what was tried."""


def found_before(folder: RunFolder) -> dict[str, Any]:
    """What a search found before the run, for its results."""
    path = folder.path / SEARCH / TRIED
    return {"search": read_json(path)} if path.is_file() else {}


def before_sections(folder: RunFolder, before: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The report's sections of what was done `before` the run: settings tried on val, rates tried in a range test."""
    sections = []
    if found := before.get("search"):
        rows = [[_shown(value) for value in row.values()] for row in found["tried"]]
        header = [name.replace("_", " ") for name in found["tried"][0]] if rows else []
        words = f"<p>{html.escape(found['words'])}</p>"
        sections.append(("How the settings were chosen", words + report.table(rows, header)))
    picture = folder.path / RATES_PICTURE
    if picture.is_file():
        sections.append(("Learning rate", report.figure(picture.read_bytes(), "loss against learning rate")))
    return sections


def _shown(value: Any) -> Any:
    return "" if value is None else value


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
    before = found_before(folder)
    results |= before
    sections = [
        *sections,
        *before_sections(folder, before),
        ("Config", report.preformatted(read_text(folder.path / CONFIG))),
    ]
    folder.write(files | {"report.html": report.page(title, lead, sections)})
    folder.write_results(results)
    return results
