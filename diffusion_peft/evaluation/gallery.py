"""An evaluation's pictures in a report: grids beside the subject's pictures, scale sweeps, losses."""

from __future__ import annotations

import csv
import html
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from diffusion_peft.drawing.draw import grid, png_of
from diffusion_peft.evaluation.subjects import Subject, real_pictures
from peft_core.jobs.reports import page as report
from peft_core.jobs.reports import plots

LARGEST = 24
"""Runs whose pictures are shown one by one."""
SIDE = 128


@dataclass(frozen=True)
class Shown:
    """A run's pictures: of all prompts and seeds, the base's for them, those of the class prompt of both, and a sweep."""

    run: str
    subject: Subject
    pictures: list[Image.Image]
    plain: list[Image.Image]
    of_class: list[Image.Image]
    before: list[Image.Image]
    sweep: list[dict[str, Any]]


def sections(shown: Sequence[Shown], facts: dict[str, Any], prompts: Sequence[str], how: Any) -> list[tuple[str, str]]:
    """(heading, HTML): an overview by subject, then each run."""
    made = [("Real pictures", limits(facts["real"]))]
    for data in dict.fromkeys(each.subject.data for each in shown):
        made.append((data, overview([each for each in shown if each.subject.data == data], how.count)))
    for each in shown[:LARGEST]:
        made.append((f"{each.run}, {each.subject.data}", of_run(each, prompts, how)))
    if losses := loss_plot([each.run for each in shown]):
        made.append(("Training loss", report.figure(losses, "training loss of each run")))
    return made


def limits(rows: Sequence[dict[str, Any]]) -> str:
    """What features tell apart: the mean likeness of two real pictures of the subject, and of it and another."""
    header = ["subject", "compared with"]
    header += [f"{name}, {what}" for name in ("features", "CLIP-I") for what in ("same", "other", "separation")]
    header += ["CLIP-T, right caption", "wrong caption"]
    lines = []
    for row in rows:
        line = [row["of"], row["compared with"]]
        line += [row[key].get(what) for key in ("subject", "clip_i") for what in ("ceiling", "floor", "separation")]
        line += [row.get("clip_t", {}).get(key) for key in ("clip_t", "clip_t_wrong")]
        lines.append(["" if value is None else value for value in line])
    note = (
        "<p>Separation: how often two pictures of the subject are more alike than one of it and one of another subject "
        "(0.5 is chance).</p>"
    )
    return report.table(lines, header) + note


def overview(runs: Sequence[Shown], count: int) -> str:
    """Real pictures, the base's, and each run's, first seed of every prompt."""
    real = small(real_pictures(runs[0].subject).pictures)
    rows = [("real pictures", real[: len(runs[0].plain) // count]), ("base", runs[0].plain[::count])]
    return lines_of(rows + [(each.run, each.pictures[::count]) for each in runs])


def lines_of(rows: Sequence[tuple[str, Sequence[Image.Image]]]) -> str:
    """A line of pictures each, and below them what they are."""
    picture = report.figure(png_of(_enlarged(grid([pictures for _, pictures in rows]))), "a line of pictures each")
    return picture + "<p>From above: " + html.escape("; ".join(name for name, _ in rows)) + ".</p>"


def of_run(each: Shown, prompts: Sequence[str], how: Any) -> str:
    """Every prompt's pictures beside the base's, the class's, and the scale sweep."""
    lines = [each.pictures[start : start + how.count] + each.plain[start : start + how.count]
             for start in range(0, len(each.pictures), how.count)]  # fmt: skip
    parts = [report.figure(png_of(_enlarged(grid(lines))), "a line a prompt")]
    words = "; ".join(prompt.format(each.subject.words) for prompt in prompts)
    parts.append(
        f"<p>{how.count} pictures of the run, then as many of the base for the class. From above: {html.escape(words)}.</p>"
    )
    parts.append(report.figure(png_of(_enlarged(grid([each.of_class, each.before]))), "pictures of the class prompt"))
    parts.append(f"<p>“{html.escape(each.subject.class_prompt)}”: the run above, the base below.</p>")
    if each.sweep:
        columns = [[row["pictures"][line] for row in each.sweep] for line in range(len(each.sweep[0]["pictures"]))]
        parts.append(report.figure(png_of(_enlarged(grid(columns))), "scale sweep"))
        table = [[row["scale"], row["subject"], row["clip_t"]] for row in each.sweep]
        parts.append(report.table(table, ["scale", "subject fidelity", "CLIP-T"]))
    return "\n".join(parts)


def loss_plot(runs: Sequence[str]) -> bytes | None:
    """PNG: the smoothed loss of every run that has a metrics.csv."""
    figure, (axis,) = plots.axes(1, 1, figsize=(7, 3.6))
    drawn = 0
    for run in dict.fromkeys(runs):
        path = Path(run) / "metrics.csv"
        if not path.is_file():
            continue
        with path.open(encoding="utf-8") as file:
            rows = [(int(row["step"]), float(row["loss"])) for row in csv.DictReader(file) if row.get("loss")]
        size = max(1, len(rows) // 20)
        groups = [rows[start : start + size] for start in range(0, len(rows), size)]
        x, y = ([sum(pair[k] for pair in group) / len(group) for group in groups] for k in (0, 1))
        axis.plot(x, y, lw=1.0, label="/".join(Path(run).parts[-3:]))
        drawn += 1
    axis.set_xlabel("optimiser step")
    axis.set_ylabel("training loss")
    if drawn <= 12:
        axis.legend(fontsize=7)
    return plots.png(figure) if drawn else None


def small(pictures: Sequence[Image.Image]) -> list[Image.Image]:
    """Copies of at most 128 px a side, so that a report of many runs stays small."""
    copies = [picture.copy() for picture in pictures]
    for copy in copies:
        copy.thumbnail((SIDE, SIDE))
    return copies


def _enlarged(picture: Image.Image) -> Image.Image:
    """Twice as large where it is small, so that single pixels of 64 px pictures can be seen."""
    factor = 2 if picture.width < 640 else 1
    return picture.resize((picture.width * factor, picture.height * factor), Image.Resampling.NEAREST)
