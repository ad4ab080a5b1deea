"""Figures against optimiser steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from peft_core.jobs.reports import plots

COLOURS = (plots.ACCENT, plots.SECOND, plots.INK, "#3a7d5d", "#8a5fa8", "#b58a2f")


def against_steps(lines: Mapping[str, Sequence[tuple[float, float]]], label: str) -> bytes:
    """PNG: named lines of (step, value)."""
    figure, (axis,) = plots.axes(1, 1, figsize=(7, 3))
    for (name, points), colour in zip(lines.items(), COLOURS, strict=False):
        axis.plot(*zip(*points, strict=True), color=colour, lw=1.5, marker="." if len(points) < 30 else "", label=name)
    axis.set_xlabel("optimiser step")
    axis.set_ylabel(label)
    axis.set_ylim(bottom=0)
    axis.legend(frameon=False)
    return plots.png(figure)
