"""What a finished classifier run leaves: results.json, metrics.csv, predictions.csv, plots and report.html."""

from __future__ import annotations

from typing import Any

from peft_data import ClassificationData
from peft_data.cache import DecodedPictures

from peft_core.jobs.reports import page as report
from peft_core.jobs.reports import plots
from peft_core.jobs.reports.pictures import picture_section, prediction_rows
from peft_core.jobs.reports.scores import Scores
from peft_core.jobs.runs import outcome
from peft_core.jobs.runs.folder import RunFolder


def write_outcome(
    folder: RunFolder,
    data: ClassificationData,
    results: dict[str, Any],
    history: list[dict[str, float]],
    scores: Scores | None,
    pictures: DecodedPictures | None,
) -> dict[str, Any]:
    """Writes all of it and returns the results, completed."""
    results["per_class"] = dict(zip(data.class_names, scores.per_class, strict=True)) if scores else {}
    results = outcome.measured(results)
    curves = plots.curves(history)
    files = {"metrics.csv": report.csv_bytes(history), "curves.png": curves}
    sections = [("Result", report.table(summary_rows(results))), ("Training", report.figure(curves, "training loss"))]
    if scores and pictures:
        files["predictions.csv"] = report.csv_bytes(prediction_rows(data, scores, pictures))
        files["confusion.png"] = confusion = plots.confusion(scores.confusion, data.class_names)
        per_class = [(name, "" if share is None else share) for name, share in results["per_class"].items()]
        sections += [
            ("Pictures, wrong ones first", picture_section(data, scores, pictures)),
            ("Confusion", report.figure(confusion, "confusion matrix")),
            ("Accuracy of each class", report.table(per_class)),
        ]
    lead = "not scored" if results["accuracy"] is None else f"accuracy {100 * results['accuracy']:.2f} %"
    title = f"{data.name}, {results['method']['name']} on {results['backbone']}"
    return outcome.write_outcome(folder, results, files, title, f"{lead} ({describe_protocol(results)})", sections)


def describe_protocol(results: dict[str, Any]) -> str:
    if results["evaluated_on"] is None:
        return "no pictures apart from the training ones"
    if results["protocol"] == "legacy":
        return (
            "legacy protocol: the epoch was chosen on the test set, so this is too high to be compared with honest ones"
        )
    if results["evaluated_on"] == "val":
        return "trained on train, last epoch, scored on val: a figure to choose settings by"
    return "honest protocol: trained on train + val, last epoch, scored once on test"


def summary_rows(results: dict[str, Any]) -> list[tuple[str, Any]]:
    count, seconds = results["parameters"], results["seconds"]
    normal = results["normalisation"]
    share = 100 * count["inserted"] / max(1, count["total"] - count["head"])
    return [
        (
            "protocol",
            f"{results['protocol']}, epoch {results['epoch']}, scored on {results['evaluated_on'] or 'nothing'}",
        ),
        ("data", f"{results['data']}: " + ", ".join(f"{n:,} {name}" for name, n in results["pictures"].items())),
        ("method", outcome.method_words(results["method"])),
        ("backbone", f"{results['backbone']}, weights {results['checkpoint_family']}"),
        ("normalisation", f"{normal['name']}: mean {_few(normal['mean'])}, std {_few(normal['std'])}"),
        ("inserted parameters", f"{count['inserted']:,} ({share:.2f} % of the backbone)"),
        ("head parameters", f"{count['head']:,}"),
        ("all parameters", f"{count['total']:,}"),
        ("seconds", f"{seconds['train']:.1f} training, {seconds['evaluate']:.1f} scoring"),
        *outcome.closing_rows(results),
    ]


def _few(numbers: Any) -> str:
    return "(" + ", ".join(f"{number:.3g}" for number in numbers) + ")"
