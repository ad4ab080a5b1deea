"""What a finished run on pairs leaves: results.json, metrics.csv, plots and report.html."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from peft_data.pairs import PairData

from peft_core.jobs.reports import page
from peft_core.jobs.reports.plots import ACCENT, INK, SECOND, axes, curves, png
from peft_core.jobs.runs import outcome
from peft_core.jobs.runs.folder import RunFolder

WAYS = {"image_to_text": "picture → caption", "text_to_image": "caption → picture"}


def write_report(folder: RunFolder, results: dict[str, Any], history: Sequence[dict[str, float]]) -> dict[str, Any]:
    """Writes all of it and returns the results, completed."""
    results = outcome.measured(results)
    files = {"metrics.csv": page.csv_bytes(history), "curves.png": curves(history)}
    sections = [("Result", page.table(summary_rows(results)))]
    if results["after"]["retrieval"]:
        sections.append(("Retrieval", page.table(retrieval_rows(results), ["", *(f"R@{k}" for k in (1, 5, 10))])))
    sections.append(("Training", page.figure(files["curves.png"], "training loss")))
    looked = [row for row in history if "val_loss" in row]
    if looked:
        files["val.png"] = on_the_way(looked)
        sections.append(("On val, on the way", page.figure(files["val.png"], "loss and retrieval of val by step")))
    if len(results["curve"]) > 1:
        files["between.png"] = between(results["curve"])
        words = (
            "0 is the stock model, 1 the trained one; what is between is had by set_scale, or a merge at that scale."
        )
        sections.append(
            ("Between stock and trained", f"<p>{words}</p>" + page.figure(files["between.png"], "WiSE-FT curve"))
        )
    sections += outcome.next_section(folder)
    lead = (
        f"{results['method']['name']} on {results['backbone']}, {results['loss']} loss, batches of {results['batch']}"
    )
    return outcome.write_outcome(folder, results, files, f"{results['data']}: pictures and captions", lead, sections)


def summary_rows(results: Mapping[str, Any]) -> list[tuple[str, Any]]:
    count, seconds = results["parameters"], results["seconds"]
    before, after = results["before"]["zero_shot"], results["after"]["zero_shot"]
    cut = results["left_out"]["captions_cut"]
    return [
        ("data", f"{results['data']}: {results['pictures']['train']:,} training pairs, {results['pictures']['scored']:,} scored "
                 f"({results['evaluated_on'] or 'nothing'})"),
        *((f"zero-shot accuracy, {name}", f"{100 * was:.2f} % before, {100 * after[name]:.2f} % after")
          for name, was in before.items()),
        ("captions longer than the model reads", cut),
        ("logit scale", f"{results['logit_scale']:.2f}"),
        ("method", outcome.method_words(results["method"])),
        ("backbone", f"{results['backbone']}, weights {results['checkpoint_family']}"),
        ("trained parameters", f"{count['trainable']:,} ({100 * count['trainable'] / count['total']:.3f} %)"),
        ("seconds", f"{seconds['train']:.1f} training ({results['epoch']} epochs), {seconds['evaluate']:.1f} scoring"),
        *outcome.closing_rows(results),
    ]  # fmt: skip


def retrieval_rows(results: Mapping[str, Any]) -> list[list[Any]]:
    return [
        [f"{words}, {when}", *(f"{100 * results[when]['retrieval'][f'{way}_r{k}']:.1f} %" for k in (1, 5, 10))]
        for way, words in WAYS.items()
        for when in ("before", "after")
    ]


def on_the_way(rows: Sequence[Mapping[str, float]]) -> bytes:
    """PNG: the loss of val and its R@1 both ways, by step."""
    figure, (top, bottom) = axes(2, 1, figsize=(7, 4.4), sharex=True)
    steps = [row["step"] for row in rows]
    top.plot(steps, [row["val_loss"] for row in rows], color=INK, marker="o", ms=3)
    top.set_ylabel("loss of val")
    for way, colour in zip(WAYS, (ACCENT, SECOND), strict=True):
        bottom.plot(
            steps, [100 * row[f"{way}_r1"] for row in rows], color=colour, marker="o", ms=3, label=way.replace("_", " ")
        )
    bottom.set_ylabel("R@1 of val, %")
    bottom.set_xlabel("optimiser steps")
    bottom.legend(frameon=False, fontsize=8)
    return png(figure)


def between(rows: Sequence[Mapping[str, Any]]) -> bytes:
    """PNG: retrieval against the accuracy of zero-shot sets where there are some, along the way from stock to trained."""
    figure, (axis,) = axes(1, 1, figsize=(6.4, 4.2))
    scales = [row["scale"] for row in rows]
    if rows[0]["retrieval"]:
        target = [
            100 * (row["retrieval"]["image_to_text_r1"] + row["retrieval"]["text_to_image_r1"]) / 2 for row in rows
        ]
        axis.plot(scales, target, color=ACCENT, marker="o", ms=4, label="R@1, mean of both ways")
    for name, style in zip(rows[0]["zero_shot"], ("-", "--", ":", "-.") * 8, strict=False):
        accuracy = [100 * row["zero_shot"][name] for row in rows]
        axis.plot(scales, accuracy, color=SECOND, ls=style, marker="o", ms=4, label=f"zero-shot, {name}")
    axis.set_xlabel("scale: 0 stock, 1 trained")
    axis.set_ylabel("%")
    axis.legend(frameon=False, fontsize=8)
    return png(figure)


def next_commands(folder: RunFolder, data: PairData, source: Path) -> list[str]:
    run, name = shlex.quote(str(folder.path)), str(folder.path).rstrip("/")
    items = data.train.pictures.items
    pictures = (
        shlex.quote(str(source if source.is_dir() else source.parent))
        if data.train.pictures.is_files and len(items)
        else "PICTURES"
    )
    words = shlex.quote((data.test if len(data.test) else data.train).captions[0][0])
    return [
        f"clip_peft retrieve {words} --run {run} --pictures {pictures}",
        f"clip_peft predict --run {run} --classes NAME NAME {pictures}",
        f"clip_peft merge --run {run} --out {shlex.quote(f'{name}-merged')}",
    ]
