"""Two pictures of a search: what was scored, and what was chosen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from peft_core.jobs.reports.plots import INK, SECOND, axes, png
from vision_peft.noah.search import Candidate, front


def search_picture(candidates: Sequence[Candidate], chosen: Candidate, pictures: int, budget: int) -> bytes:
    """PNG: accuracy on val against inserted parameters of every candidate, later generations darker; the front, the budget
    and the chosen one."""
    figure, (axis,) = axes(1, 1, figsize=(7.4, 4.6))
    points = axis.scatter(
        [each.parameters for each in candidates],
        [100 * each.score.correct / pictures for each in candidates],
        c=[each.generation + 1 for each in candidates], cmap="Blues", vmin=-5, s=14, linewidths=0,
    )  # fmt: skip
    best = front(list(candidates))
    heights = [100 * each.score.correct / pictures for each in best]
    axis.plot([each.parameters for each in best], heights, color=INK, lw=1, drawstyle="steps-post", label="front")
    axis.plot(chosen.parameters, 100 * chosen.score.correct / pictures, "*", color=SECOND, ms=15, label="chosen")
    axis.axvline(budget, color=INK, ls=":", lw=1, label="budget")
    last = max(each.generation for each in candidates) + 1
    bar = figure.colorbar(
        points, ax=axis, fraction=0.046, pad=0.03, label="generation", ticks=sorted({1, (last + 1) // 2, last})
    )
    bar.ax.set_ylim(min(1, last - 1), last)  # the palest third of the colours cannot be seen on white
    axis.set_xlabel("inserted parameters")
    axis.set_ylabel("accuracy on val with inherited weights, %")
    axis.xaxis.set_major_formatter("{x:,.0f}")
    axis.legend(frameon=False, loc="lower left", bbox_to_anchor=(0, 1), ncols=3, fontsize=9)
    return png(figure)


def subnet_picture(widths: Mapping[str, int | Sequence[int]]) -> bytes:
    """PNG: the width of each method in each block; empty where it is absent."""
    rows = {name: [row] if isinstance(row, int) else list(row) for name, row in widths.items()}
    blocks = max(len(row) for row in rows.values())
    largest = max(max(row) for row in rows.values()) or 1
    figure, (axis,) = axes(1, 1, figsize=(1.6 + 0.55 * blocks, 0.9 + 0.55 * len(rows)))
    shares = [[width / largest for width in row] for row in rows.values()]
    axis.imshow(shares, cmap="Blues", vmin=0, vmax=1.2, aspect="auto")
    for number, row in enumerate(rows.values()):
        for block, width in enumerate(row):
            if width:
                colour = "white" if width > 0.65 * largest else INK
                axis.text(block, number, str(width), ha="center", va="center", color=colour, fontsize=10)
    axis.set_xticks(range(blocks), [str(block + 1) for block in range(blocks)])
    axis.set_yticks(range(len(rows)), list(rows))
    axis.set_xlabel("block")
    axis.tick_params(length=0)
    axis.spines[:].set_visible(False)
    axis.set_xticks([edge - 0.5 for edge in range(1, blocks)], minor=True)
    axis.set_yticks([edge - 0.5 for edge in range(1, len(rows))], minor=True)
    axis.grid(which="minor", color="white", lw=2)
    axis.tick_params(which="minor", length=0)
    return png(figure)
