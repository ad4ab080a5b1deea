"""Figures of the field: accuracy against shots, base and new, reliability."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from peft_core.report import ACCENT, INK, SECOND, axes, png

COLOURS = (ACCENT, SECOND, "#3a7d5d", "#8e5ea2", "#c98a1b", "#4d4d4d", "#57a0a8", "#a05757", "#7a8b2d", "#b86fa0")


def reliability_diagram(bins: Mapping[str, Sequence[Mapping[str, Any]]]) -> bytes:
    """PNG: accuracy against confidence in each bin, a line a method, the diagonal is a model that can be believed."""
    figure, (axis,) = axes(1, 1, figsize=(4.8, 4.4))
    axis.plot([0, 1], [0, 1], color="#9aa3ad", lw=1, ls="--")
    most = max((row["count"] for rows in bins.values() for row in rows), default=1)
    for colour, (name, rows) in zip(_colours(len(bins)), bins.items(), strict=True):
        full = [row for row in rows if row["count"]]
        x, y = [row["confidence"] for row in full], [row["accuracy"] for row in full]
        axis.plot(x, y, color=colour, lw=1.2, label=name)
        axis.scatter(x, y, s=[8 + 60 * row["count"] / most for row in full], color=colour, alpha=0.8)
    axis.set(xlabel="confidence", ylabel="accuracy", xlim=(0, 1.02), ylim=(0, 1.02))
    if bins:
        axis.legend(frameon=False, fontsize=8)
    return png(figure)


def against_shots(lines: Mapping[str, Mapping[int, tuple[float, float]]]) -> bytes:
    """PNG: mean accuracy and its spread against shots, on a logarithmic axis, a line a method."""
    figure, (axis,) = axes(1, 1, figsize=(6.4, 4.4))
    shots = sorted({shot for points in lines.values() for shot in points})
    for colour, (name, points) in zip(_colours(len(lines)), lines.items(), strict=True):
        own = sorted(points)
        axis.errorbar(own, [points[s][0] for s in own], yerr=[points[s][1] for s in own], color=colour, marker="o", ms=4,
                      lw=1.4, capsize=2, label=name)  # fmt: skip
    axis.set_xscale("log", base=2)
    axis.set_xticks(shots, [str(shot) for shot in shots])
    axis.set(xlabel="shots", ylabel="accuracy, %")
    axis.legend(frameon=False, fontsize=8)
    return png(figure)


def base_new_bars(rows: Mapping[str, tuple[float | None, float | None, float | None]]) -> bytes:
    """PNG: base, new and H of each method side by side."""
    figure, (axis,) = axes(1, 1, figsize=(max(4.5, 1.2 + 0.9 * len(rows)), 4.2))
    for offset, part, colour in zip((-0.27, 0.0, 0.27), ("base", "new", "H"), (ACCENT, SECOND, INK), strict=True):
        values = [row[("base", "new", "H").index(part)] for row in rows.values()]
        places = [i + offset for i, value in enumerate(values) if value is not None]
        axis.bar(places, [value for value in values if value is not None], width=0.25, color=colour, label=part)
    axis.set_xticks(range(len(rows)), list(rows), rotation=30 if len(rows) > 4 else 0, fontsize=9)
    axis.set_ylabel("accuracy, %")
    axis.legend(frameon=False, fontsize=8, ncols=3)
    return png(figure)


def _colours(count: int) -> list[str]:
    return [COLOURS[i % len(COLOURS)] for i in range(count)]
