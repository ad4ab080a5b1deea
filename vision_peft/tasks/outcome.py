"""The run folder's files of tasks without classes: results, curves, predictions, the report's sections."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from peft_core.jobs.reports import classified, page
from peft_core.jobs.runs import outcome
from vision_peft.results import describe_protocol, summary_rows


def write(
    run: classified.Finished, lead: str, score: str, files: Mapping[str, bytes], sections: Sequence[classified.Section]
) -> dict[str, Any]:
    """Writes results.json, metrics.csv, report.html and `files`; gives the results, completed.

    Args:
        lead: the figure in words.
        score: what it is called in the run's history.
        sections: of what was scored.
    """
    results = outcome.measured(run.results)
    trained, about_training = classified.training(run.history, score)
    parts = [
        *outcome.remark_section(results), ("Result", page.table(summary_rows(results))), *about_training, *sections,
        *outcome.next_section(run.folder),
    ]  # fmt: skip
    title = f"{run.data.name}, {results['method']['name']} on {results['backbone']}"
    lead = f"{lead}; {describe_protocol(results)}"
    return outcome.write_outcome(run.folder, results, trained | dict(files), title, lead, parts)
