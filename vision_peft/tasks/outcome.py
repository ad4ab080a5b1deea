"""The run folder's files of tasks without classes: results, curves, predictions, the report's sections."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from peft_core.jobs.reports import classified
from vision_peft.results import describe_protocol, summary_rows
from vision_peft.tasks.base import Task


def write(
    run: classified.Finished,
    task: Task,
    files: Mapping[str, bytes] | None = None,
    sections: Sequence[classified.Section] = (),
) -> dict[str, Any]:
    """Writes results.json, metrics.csv, report.html and `files`; gives the results, completed.

    Args:
        files, sections: of what was scored.
    """
    results = run.results
    title = f"{run.data.name}, {results['method']['name']} on {results['backbone']}"
    figure = "not scored" if run.scores is None else task.words(results)
    lead = f"{figure}; {describe_protocol(results)}"
    return classified.write_with(run, summary_rows, title, lead, files or {}, sections, task.score)
