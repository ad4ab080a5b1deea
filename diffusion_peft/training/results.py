"""What a finished run leaves: results.json, metrics.csv, sample grids, a scale sweep and report.html."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from PIL import Image

from diffusion_peft.drawing.scaling import can_be_scaled, set_scales
from diffusion_peft.training.denoise import Denoiser
from diffusion_peft.training.samples import Samples
from diffusion_peft.training.tasks import Task
from peft_core.jobs.reports import page as report
from peft_core.jobs.reports import plots
from peft_core.jobs.runs import outcome
from peft_core.jobs.runs.folder import RunFolder
from peft_core.jobs.runs.saying import waiting


def write_outcome(
    folder: RunFolder,
    results: dict[str, Any],
    denoiser: Denoiser,
    samples: Samples,
    shown: list[Image.Image],
    task: Task,
) -> dict[str, Any]:
    """Writes all of it and returns the results, completed."""
    curves = plots.curves(denoiser.history)
    files = {"metrics.csv": report.csv_bytes(denoiser.history), "curves.png": curves}
    sections = [("Pictures it was taught with", report.picture_grid([(picture, "", False) for picture in shown]))]
    if samples.count:
        with waiting("drawing samples"):
            sections += drawn(denoiser, samples)
        sections += on_the_way(samples)
    more, own = task.outcome(denoiser, samples)
    results = outcome.measured(results | more)
    sections += [
        ("Result", report.table(summary_rows(results))),
        ("Training", report.figure(curves, "training loss")),
        *own,
    ]
    what = ", ".join(dict.fromkeys(Path(each).name or each for each in map(str, results["data"])))
    title = f"{what}: {results['method']['name']} on {results['base']}"
    lead = f"mean loss of the last tenth {results['loss']:.4f}, {results['steps']:,} steps"
    sections = [*outcome.remark_section(results), *sections, *outcome.next_section(folder)]
    return outcome.write_outcome(folder, results, files, title, lead, sections)


def drawn(denoiser: Denoiser, samples: Samples) -> list[tuple[str, str]]:
    """Samples of the adapted models and of the base, and the first picture at several scales where there are any."""
    rows = samples.rows(denoiser)
    samples.write("final.png", samples.seen(rows))
    sections = [(f"“{text}”", report.picture_grid([(picture, words, False) for picture, words in row]))
                for text, row in zip(samples.texts, samples.framed(rows), strict=True)]  # fmt: skip
    sweep: list[list[Image.Image]] = []
    models = list(denoiser.adapted().values())
    if can_be_scaled(models):
        for scale in samples.scales:
            set_scales(models, scale)
            sweep.append([row[0] for row in samples.rows(denoiser)])
        set_scales(models, 1.0)
    if sweep:
        columns = [[at[number] for at in sweep] for number in range(len(samples.texts))]
        samples.write("scales.png", columns)
        cells = [
            (picture, f"scale {scale:g}", False)
            for row in columns
            for picture, scale in zip(row, samples.scales, strict=True)
        ]
        sections.append(("Seed 0 at several scales", report.picture_grid(cells)))
    return sections


def on_the_way(samples: Samples) -> list[tuple[str, str]]:
    """The grids that were drawn while training."""
    files = sorted(samples.folder.glob("[0-9]*.png"))
    figures = [
        f"<p>after {int(file.stem):,} steps</p>{report.figure(file.read_bytes(), f'samples after {file.stem} steps')}"
        for file in files
    ]
    return [("On the way, the same prompts and seeds", "".join(figures))] if figures else []


def summary_rows(results: dict[str, Any]) -> list[tuple[str, Any]]:
    seconds, pictures = results["seconds"], results["pictures"]
    rows: list[tuple[str, Any]] = [
        ("base", f"{results['base']} ({results['kind']}, {results['prediction_type']})"),
        ("method", outcome.method_words(results["method"])),
        ("text method", (results["text_method"] or {}).get("name", "none")),
        ("new tokens", ", ".join(f"{name} ({n} vectors)" for name, n in results["tokens"].items()) or "none"),
        ("pictures", f"{pictures['train']:,} and {pictures['prior']:,} prior pictures"),
    ]
    for part, count in results["parameters"].items():
        if part != "inserted":
            rows.append((f"trained parameters of {part}", count["inserted"]))
    return rows + [
        ("adapter", f"{results['adapter_bytes'] / 2**20:.2f} MiB"),
        ("steps", results["steps"]),
        ("seconds", f"{seconds['train']:.1f} training, {seconds['prepare']:.1f} preparing"),
        *outcome.closing_rows(results),
    ]
