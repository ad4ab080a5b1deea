"""What a finished run leaves: results.json, metrics.csv, predictions.csv, plots and report.html."""

from __future__ import annotations

from typing import Any

from clip_peft.plots import reliability_diagram
from peft_core.jobs.reports import classified
from peft_core.jobs.reports import page as report
from peft_core.jobs.runs import outcome


def write_outcome(run: classified.Finished) -> dict[str, Any]:
    """Writes all of it and returns the results, completed."""
    results = run.results
    diagram = reliability_diagram({results["method"]["name"]: results["bins"]}) if run.scores else b""
    trust = ("Can the probabilities be trusted?", report.figure(diagram, "reliability diagram"))
    of = "" if results["classes"] == "all" else f"{results['classes']} classes of "
    title = f"{run.data.name}, {results['method']['name']} on {results['backbone']}, {results['shots'] or 'all'} shots"
    lead = classified.accuracy_words(run.scores)
    if run.scores:
        lead += f" on {of}{results['evaluated_on']}{', last epoch' if results['epoch'] else ''}"
    return classified.write(run, summary_rows, title, lead, [trust])


def summary_rows(results: dict[str, Any]) -> list[tuple[str, Any]]:
    found = results["chosen"]
    first, *rest = common_rows(results)
    rows = [
        first,
        ("zero-shot accuracy of the same pictures",
         "" if results["zero_shot_accuracy"] is None else f"{100 * results['zero_shot_accuracy']:.2f} %"),
        ("expected calibration error", "" if results["ece"] is None else f"{results['ece']:.4f}"),
        *rest,
    ]  # fmt: skip
    rows.insert(1, ("classes", f"{results['classes']}, {len(results['per_class'])}"))
    if found:
        values = ", ".join(f"{name} {value:g}" for name, value in found["settings"].items())
        words = f"{values}: {found['accuracy']:.4f} of {found['pictures']:,}"
        rows.insert(4, (f"chosen on {found['on']}", words))
    return rows


def labels_rows(results: dict[str, Any]) -> list[tuple[str, Any]]:
    """The report's first table of a run on pictures with any number of labels."""
    first, *rest = common_rows(results)
    zero = results["zero_shot_mAP"]
    return [
        first,
        ("labels", f"{results['classes']}, {len(results['per_label'])}"),
        ("zero-shot mAP of the same pictures", "" if zero is None else f"{zero:.4f}"),
        *rest,
    ]


def common_rows(results: dict[str, Any]) -> list[tuple[str, Any]]:
    count, seconds = results["parameters"], results["seconds"]
    return [
        ("data", f"{results['data']}: {results['pictures']['train']:,} training pictures, {results['pictures']['scored']:,} "
                 f"scored ({results['evaluated_on'] or 'nothing'})"),
        ("method", outcome.method_words(results["method"])),
        ("backbone", f"{results['backbone']}, weights {results['checkpoint_family']}"),
        ("precision", results["precision"]),
        ("cached views of each picture", results["cached_views"]),
        ("trained parameters", f"{count['trainable']:,} ({100 * count['trainable'] / count['total']:.3f} %)"),
        ("all parameters", f"{count['total']:,}"),
        ("seconds", f"{seconds['features']:.1f} image features, {seconds['train']:.1f} training ({results['epoch']} epochs), "
                    f"{seconds['evaluate']:.1f} scoring"),
        *outcome.closing_rows(results),
    ]  # fmt: skip
