"""Plots as PNG bytes: curves, confusion, scatter."""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from peft_core.jobs.reports import fonts

INK, ACCENT, SECOND = "#1b1f24", "#2f6690", "#b5402f"


def curves(history: Sequence[Mapping[str, float]], score: str = "accuracy") -> bytes:
    """PNG: the training loss against optimiser steps with the learning rate under it, and the loss of val and the scores where
    there are some."""
    figure, (top, bottom) = axes(2, 1, figsize=(7, 4.6), sharex=True, height_ratios=[3, 1])
    losses = [row for row in history if "loss" in row]
    steps = [row["step"] for row in losses]
    values, mark = [row["loss"] for row in losses], "." if len(losses) < 20 else ""
    many = len(losses) >= 60
    top.plot(steps, values, color=ACCENT, lw=0.7 if many else 1.5, marker=mark, alpha=0.4 if many else 1)
    if many:
        top.plot(steps, smooth(values), color=ACCENT, lw=1.8)
    top.set_ylabel("training loss", color=ACCENT)
    if looked := [row for row in history if "val_loss" in row]:
        columns = [row["step"] for row in looked], [row["val_loss"] for row in looked]
        top.plot(*columns, color=INK, lw=1.2, ls="--", marker="o", ms=3, label="val loss")
        top.legend(frameon=False, loc="upper right")
    top.set_ylim(bottom=0)
    scored = [row for row in history if score in row]
    if scored:
        right = top.twinx()
        right.plot(
            [row["step"] for row in scored], [row[score] for row in scored], color=SECOND, lw=1.5, marker="o", ms=3
        )
        right.set_ylabel(score, color=SECOND)
        right.set_ylim(min(0, *(row[score] for row in scored)), 1.02)
    bottom.plot(steps, [row["lr"] for row in losses], color=INK, lw=1.2, marker=mark)
    if len(steps) == 1:
        bottom.set_xlim(steps[0] - 1, steps[0] + 1)
    bottom.set_ylabel("learning rate")
    bottom.set_ylim(bottom=0)
    bottom.set_xlabel("optimiser step")
    bottom.xaxis.get_major_locator().set_params(integer=True)
    return png(figure)


def so_far(what: str, points: Sequence[tuple[float, float]]) -> bytes:
    """PNG: the training loss of a run that goes on, against `what` it counts."""
    figure, (axis,) = axes(1, 1, figsize=(6, 3))
    axis.plot([x for x, _ in points], [y for _, y in points], color=ACCENT, marker="." if len(points) < 20 else "")
    axis.set_ylim(bottom=0)
    axis.set_xlabel(what)
    axis.xaxis.get_major_locator().set_params(integer=True)
    axis.set_ylabel("training loss")
    return png(figure)


def smooth(values: Sequence[float], share: float = 0.1) -> list[float]:
    """The running mean over a share of all values, half of them before and half behind each."""
    half = max(1, int(len(values) * share / 2))
    around = [values[max(0, at - half) : at + half + 1] for at in range(len(values))]
    return [sum(each) / len(each) for each in around]


def confusion(counts: Any, class_names: Sequence[str]) -> bytes:
    """PNG of a confusion matrix C C: each row is a true class, its colours the shares of its pictures; up to 25 classes
    the counts are written in."""
    import numpy as np

    counts = np.asarray(counts)
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    size = len(counts)
    side, small = min(14.0, 2.5 + 0.42 * min(size, 25)), 9 if size <= 25 else 5
    names = in_lines(class_names) if size <= 25 else [label(name) for name in class_names] if size <= 60 else []
    around = (
        fonts.most_columns(names) * small * 0.0085
    )  # inches that the names take, so that they leave the matrix its place
    figure, (axis,) = axes(1, 1, figsize=(side + 0.8 + around, side + around))
    image = axis.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    figure.colorbar(image, ax=axis, fraction=0.046, pad=0.03, label="share of the true class")
    if size <= 60:
        axis.set_xticks(range(size), names, rotation=90, fontsize=small)
        none = ["" if row.any() else " (none)" for row in counts]
        axis.set_yticks(range(size), [name + word for name, word in zip(names, none, strict=True)], fontsize=small)
    if size <= 25:
        for row, column in zip(*counts.nonzero(), strict=True):
            colour = "white" if shares[row, column] > 0.5 else INK
            axis.text(
                column,
                row,
                int(counts[row, column]),
                ha="center",
                va="center",
                color=colour,
                fontsize=8,
                in_layout=False,
            )
    number = "" if names else ", by its number in the table of classes"
    axis.set_xlabel(f"predicted{number}")
    axis.set_ylabel(f"true{number}")
    return png(figure)


def axes(rows: int, columns: int, **options: Any) -> tuple[Any, list[Any]]:
    """A matplotlib figure and its axes, row by row."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    shared = {key: options.pop(key) for key in ("height_ratios", "sharex", "sharey") if key in options}
    figure = Figure(layout="constrained", **options)
    FigureCanvasAgg(figure)
    made = figure.subplots(rows, columns, squeeze=False, **shared).ravel().tolist()
    for axis in made:
        axis.spines[["top", "right"]].set_visible(False)
    return figure, made


def png(figure: Any) -> bytes:
    """A matplotlib figure's bytes, the same each time, with all that is written around it."""
    fonts.suit(figure)
    buffer = io.BytesIO()
    with _boxes():
        figure.savefig(buffer, format="png", dpi=130, metadata={"Software": None}, bbox_inches="tight", pad_inches=0.06)
    return buffer.getvalue()


@contextlib.contextmanager
def _boxes() -> Iterator[None]:
    """Without a warning for each sign that no font has: `fonts.suit` says it once."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")
        yield


def label(name: str, longest: int = 24) -> str:
    """A name as a figure shows it: one line, its middle left out where it is too long, no dollar read as a formula."""
    name = " ".join(name.split())
    return fonts.cut(name, longest).encode(errors="replace").decode().replace("$", r"\$")


def in_lines(names: Sequence[str], width: int = 28) -> list[str]:
    """Names as a figure with room shows them, whole up to three lines."""
    return ["\n".join(fonts.wrapped(label(name, 3 * width), width)) or label(name) for name in names]


def scatter(points: Sequence[tuple[str, float, float, float]], x_label: str, y_label: str) -> bytes:
    """PNG: named points (name, x, y, spread of y), x on a logarithmic axis that has a place for 0."""
    figure, (axis,) = axes(1, 1, figsize=(7, 4.2))
    least = min((x for _, x, _, _ in points if x > 0), default=1)
    for _, x, y, spread in points:
        axis.errorbar(x, y, yerr=spread or None, fmt="o", ms=5, color=ACCENT, ecolor=INK, capsize=3)
    axis.set_xscale("symlog", linthresh=least / 2)
    axis.set_xlim(left=-least / 20, right=max(x for _, x, _, _ in points) * 3 + least)
    axis.set_xlabel(x_label)
    axis.set_ylabel(y_label)
    name_points(figure, axis, [(name, x, y) for name, x, y, _ in points])
    return png(figure)


def against(true: Sequence[float], predicted: Sequence[float], what: str) -> bytes:
    """PNG: predicted numbers against true ones, with the line on which they are the same."""
    figure, (axis,) = axes(1, 1, figsize=(4.6, 4.6))
    ends = [min(*true, *predicted), max(*true, *predicted)]
    axis.plot(ends, ends, color=INK, lw=0.8)
    axis.plot(true, predicted, ".", color=ACCENT, ms=4, alpha=0.6)
    axis.set_xlabel(f"true {label(what)}")
    axis.set_ylabel(f"predicted {label(what)}")
    return png(figure)


PLACES = ((8, 0), (-8, 0), (0, 9), (0, -9), (6, 8), (6, -8), (-6, 8), (-6, -8), (0, 18), (0, -18), (8, 18), (8, -18))
"""Of a name beside its point, in points of print, the best first."""


@_boxes()
def name_points(figure: Any, axis: Any, points: Sequence[tuple[str, float, float]]) -> None:
    """Writes each name beside its point, at the first place where it covers no other name or point, or the least of them."""
    figure.draw_without_rendering()  # settles the layout, which the places are measured in
    taken = [(x - 4, y - 4, x + 4, y + 4) for x, y in (axis.transData.transform(point[1:]) for point in points)]
    frame = axis.get_window_extent()
    how: dict[str, Any] = dict(textcoords="offset points", fontsize=8, color=INK, va="center")
    texts = [axis.annotate(label(name, 40), point, (0, 0), **how) for name, *point in points]
    fonts.suit(figure)  # how wide a name is depends on its font
    for text in texts:

        def put(place: tuple[int, int], text: Any = text) -> tuple[float, float, float, float]:
            text.xyann = place
            text.set_horizontalalignment("left" if place[0] > 0 else "right" if place[0] else "center")
            box = text.get_window_extent()
            return box.x0, box.y0, box.x1, box.y1

        def cost(place: tuple[int, int], put: Any = put) -> float:
            box = put(place)
            outside = max(0.0, frame.x0 - box[0], box[2] - frame.x1, frame.y0 - box[1], box[3] - frame.y1)
            return sum(_shared(box, other) for other in taken) + 100 * outside

        taken.append(put(min(PLACES, key=cost)))


def _shared(one: Sequence[float], other: Sequence[float]) -> float:
    """The area that two boxes x0, y0, x1, y1 share."""
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    return width * height if width > 0 and height > 0 else 0.0
