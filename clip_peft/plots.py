"""Figures of the field: accuracy against shots, base and new, reliability."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from peft_core.jobs.reports.plots import ACCENT, INK, SECOND, axes, png

COLOURS = (ACCENT, SECOND, "#3a7d5d", "#8e5ea2", "#c98a1b", "#4d4d4d", "#57a0a8", "#a05757", "#7a8b2d", "#b86fa0")


def reliability_diagram(bins: Mapping[str, Sequence[Mapping[str, Any]]]) -> bytes:
    """PNG: accuracy against confidence in each bin, a panel a method; the diagonal is a model that can be believed, and the
    size of a dot says how many pictures stand in its bin."""
    columns = max(1, min(7, len(bins)))
    lines = max(1, -(-len(bins) // columns))
    size = 4.0 if columns == 1 else 1.9
    figure, panels = axes(lines, columns, figsize=(size * columns, size * lines), sharex=True, sharey=True)
    for axis in panels[len(bins) :]:
        axis.set_visible(False)
    for axis, (name, rows) in zip(panels, bins.items(), strict=False):
        full, most = [row for row in rows if row["count"]], max(row["count"] for row in rows)
        x, y = [row["confidence"] for row in full], [row["accuracy"] for row in full]
        axis.plot([0, 1], [0, 1], color="#9aa3ad", lw=1, ls="--")
        axis.plot(x, y, color=ACCENT, lw=1.2)
        axis.scatter(x, y, s=[4 + 50 * row["count"] / most for row in full], color=ACCENT)
        axis.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
        axis.set_title(name, fontsize=9)
    figure.supxlabel("confidence", fontsize=10)
    figure.supylabel("accuracy", fontsize=10)
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


Mean = tuple[float, float] | None
"""A mean and its spread, in %."""


def base_new_dots(rows: Mapping[str, Sequence[Mean]]) -> bytes:
    """PNG: base, new and H of each method on one line, with the spread over seeds; the first method's stand as dotted lines."""
    figure, (axis,) = axes(1, 1, figsize=(6.4, 0.9 + 0.24 * len(rows)))
    for part, (label, colour) in enumerate({"base": ACCENT, "new": SECOND, "H": INK}.items()):
        known = {place: mean for place, row in enumerate(rows.values()) if (mean := row[part])}
        means, spreads = [mean for mean, _ in known.values()], [spread for _, spread in known.values()]
        axis.errorbar(means, list(known), xerr=spreads, color=colour, fmt="o", ms=5, lw=1.2, capsize=2, label=label)
        if 0 in known:
            axis.axvline(known[0][0], color=colour, lw=0.8, ls=":")
    axis.set_yticks(range(len(rows)), list(rows), fontsize=9)
    axis.invert_yaxis()
    axis.set_xlabel("accuracy, %")
    axis.legend(frameon=False, fontsize=8, ncols=3, loc="lower right", bbox_to_anchor=(1, 1))
    return png(figure)


def _colours(count: int) -> list[str]:
    return [COLOURS[i % len(COLOURS)] for i in range(count)]
