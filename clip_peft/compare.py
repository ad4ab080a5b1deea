"""`clip_peft compare`: finished runs side by side, a table a data set."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from peft_core.jobs.cli.command import command
from peft_core.jobs.reports.comparison import Comparison, Results, training_time


@command("clip")
def compare(runs: list[str], *, out: str | None = None) -> str:
    """Print a table of finished runs for each data set (classes, backbone …) among them, zero-shot beside them; runs that differ
    in their seed alone share a row, with the spread.

    Args:
        runs: Run folders, and folders of runs; what is no finished run is left out.
        out: Where to write compare.md and compare.png too (with several tables compare-1.png …).
    """
    return COMPARISON.carry_out(runs, out)


OF_LABELS = "a run on pictures with any number of labels, scored by mAP: its report has each label's average precision"
OF_PAIRS = "a run of pairs, scored by retrieval: its report has R@1, R@5 and R@10 before and after"


def title(one: Results) -> str:
    which = "" if one["classes"] == "all" else f"{one['classes']} classes, "
    return f"{one['data']}, {which}backbone {one['backbone']}, scored on {one['evaluated_on']}"


def zero_shot(own: Sequence[Results]) -> str:
    """`–` where a run changed the very weights that zero-shot needs."""
    known = [run["zero_shot_accuracy"] for run in own if run.get("zero_shot_accuracy") is not None]
    return f"{100 * statistics.mean(known):.1f} %" if known else "–"


COMPARISON = Comparison(
    "clip_peft",
    alike=("data", "classes", "evaluated_on", "backbone"),
    apart=("shots",),
    title=title,
    columns={
        "shots": lambda own: str(own[0]["shots"] or "all"),
        "zero-shot": zero_shot,
        "ECE": lambda own: f"{statistics.mean(run['ece'] for run in own):.4f}",
        "trained": lambda own: f"{own[0]['parameters']['trainable']:,}",
        "training": training_time,
    },
    size=lambda one: one["parameters"]["trainable"],
    of_size="trained parameters",
    other=lambda one: OF_PAIRS if "before" in one and "after" in one else OF_LABELS if "mAP" in one else None,
)
