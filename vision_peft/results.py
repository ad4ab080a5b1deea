"""What a finished classifier run leaves: results.json, metrics.csv, predictions.csv, plots and report.html."""

from __future__ import annotations

from typing import Any

from peft_core.jobs.reports import classified
from peft_core.jobs.reports.scores import by_class
from peft_core.jobs.runs import outcome


def write_outcome(run: classified.Finished) -> dict[str, Any]:
    """Writes all of it and returns the results, completed."""
    results = run.results
    results["per_class"] = by_class(run.data.class_names, run.scores)
    title = f"{run.data.name}, {results['method']['name']} on {results['backbone']}"
    lead = f"{classified.accuracy_words(run.scores)}; {describe_protocol(results)}"
    return classified.write(run, summary_rows, title, lead)


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
