"""`vision_peft compare`: finished runs side by side, a table a data set."""

from __future__ import annotations

from peft_core.jobs.cli.command import command
from peft_core.jobs.reports.comparison import Comparison, Results, training_time
from vision_peft.tasks import kind_of


@command("vision")
def compare(runs: list[str], *, out: str | None = None) -> str:
    """Print a table of finished runs for each data set (backbone, split …) among them; runs that differ in their seed alone share
    a row, with the spread.

    Args:
        runs: Run folders, and folders of runs; what is no finished run is left out.
        out: Where to write compare.md and compare.png too (with several tables compare-1.png …).
    """
    return COMPARISON.carry_out(runs, out)


def title(one: Results) -> str:
    return f"{one['data']}, backbone {one['backbone']}, {one['protocol']} protocol, scored on {one['evaluated_on']}"


COMPARISON = Comparison(
    "vision_peft",
    alike=("data", "task", "protocol", "evaluated_on", "backbone"),
    apart=(),
    title=title,
    columns={
        "inserted": lambda own: f"{own[0]['parameters']['inserted']:,}",
        "head": lambda own: f"{own[0]['parameters']['head']:,}",
        "of all": lambda own: f"{100 * own[0]['parameters']['inserted'] / own[0]['parameters']['total']:.2f} %",
        "training": training_time,
    },
    size=lambda one: one["parameters"]["inserted"],
    of_size="inserted parameters",
    before={"task": "classify"},
    figure=lambda one: kind_of(one["task"]).score,
)
