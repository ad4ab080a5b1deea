"""What every classifier's run leaves beside its own figures: predictions, confusion, the sections of its report."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from peft_data import ClassificationData
from peft_data.cache import DecodedPictures

from peft_core.jobs.reports import page, plots
from peft_core.jobs.reports.pictures import picture_section, prediction_rows
from peft_core.jobs.reports.scores import Scores
from peft_core.jobs.runs import outcome
from peft_core.jobs.runs.folder import RunFolder

Section = tuple[str, str]
"""Heading and HTML."""


class Finished(NamedTuple):
    """A classifier's run at its end, its files not yet written."""

    folder: RunFolder
    data: ClassificationData
    results: dict[str, Any]
    history: Sequence[dict[str, float]]
    scores: Any
    pictures: DecodedPictures | None


def write(
    run: Finished, rows: Callable[[dict[str, Any]], list], title: str, lead: str, own: Sequence[Section] = ()
) -> dict[str, Any]:
    """Writes results.json, metrics.csv, predictions.csv, plots and report.html; returns the results, completed.

    Args:
        rows: the report's first table, made of the results.
        title, lead: of the report.
        own: sections of a program's own about what was scored.
    """
    files, sections = scored(run.data, run.scores, run.pictures, own)
    return write_with(run, rows, title, lead, files, sections)


def write_with(
    run: Finished, rows: Callable[[dict[str, Any]], list], title: str, lead: str, files: Mapping[str, bytes],
    sections: Sequence[Section], score: str = "accuracy",
) -> dict[str, Any]:  # fmt: skip
    """The same with other files and sections about what was scored; `score` as for `training`."""
    results = outcome.measured(run.results)
    trained, about_training = training(run.history, score)
    parts = [
        *outcome.remark_section(results), ("Result", page.table(rows(results))), *about_training, *sections,
        *outcome.next_section(run.folder),
    ]  # fmt: skip
    return outcome.write_outcome(run.folder, results, trained | dict(files), title, lead, parts)


def training(history: Sequence[dict[str, float]], score: str = "accuracy") -> tuple[dict[str, bytes], list[Section]]:
    """metrics.csv and curves.png, and their section; nothing where nothing was trained.

    Args:
        score: what the history calls the figure of a scored split.
    """
    if not history:
        return {}, []
    curves = plots.curves(history, score)
    return (
        {"metrics.csv": page.csv_bytes(history), "curves.png": curves},
        [("Training", page.figure(curves, "training loss"))],
    )


def scored(
    data: ClassificationData, scores: Scores | None, pictures: DecodedPictures | None, own: Sequence[Section] = ()
) -> tuple[dict[str, bytes], list[Section]]:
    """predictions.csv and confusion.png, and the sections of what was scored, a program's `own` after the pictures."""
    if scores is None or pictures is None:
        return {}, []
    confusion = plots.confusion(scores.confusion, data.class_names)
    counts = zip(scores.confusion.diagonal().tolist(), scores.confusion.sum(1).tolist(), strict=True)
    rows = [
        [number, name, f"{100 * right / total:.1f} %" if total else "–", right, total]
        for number, (name, (right, total)) in enumerate(zip(data.class_names, counts, strict=True))
    ]
    files = {"predictions.csv": page.csv_bytes(prediction_rows(data, scores, pictures)), "confusion.png": confusion}
    return files, [
        ("Pictures, wrong ones first", picture_section(data, scores, pictures)),
        *own,
        ("Confusion", page.figure(confusion, "confusion matrix")),
        ("Accuracy of each class", page.table(rows, ["", "class", "accuracy", "right", "of"])),
    ]


def accuracy_words(scores: Scores | None) -> str:
    """`accuracy 83.33 % (48 pictures: 70.4 to 91.3 % with 95 % confidence)`."""
    if scores is None:
        return "not scored"
    low, high = scores.interval
    sure = f"{int(scores.confusion.sum()):,} pictures: {100 * low:.1f} to {100 * high:.1f} % with 95 % confidence"
    return f"accuracy {100 * scores.accuracy:.2f} % ({sure})"
