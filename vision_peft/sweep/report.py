"""A sweep's table, plots and report."""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import Any

from peft_core.jobs.reports import page as report
from peft_core.jobs.reports import plots
from vision_peft.sweep.plan import Plan
from vision_peft.sweep.table import Row, group_of, mean_ranks

Cells = list[list[str]]


def describe_protocol(plan: Plan) -> str:
    """What was chosen on what; the first thing to know of a table."""
    if plan.protocol == "legacy":
        chosen = "epoch and settings were" if _searched(plan) else "the epoch was"
        return (
            f"legacy protocol: {chosen} chosen on the test set, as many papers did, so these figures are too high to be "
            "compared with honest ones"
        )
    how = "honest protocol: trained on train + val, last epoch, scored once on test"
    if _searched(plan):
        of = "each task were chosen on val"
        if plan.choose_on:
            of = f"each method were chosen once, by the mean val accuracy of {' and '.join(plan.choose_on)},"
        how += f"; the settings of {of} after training on train, at seed {plan.seeds[0]}"
    return how


def _searched(plan: Plan) -> bool:
    return any(len(points) > 1 for points in plan.points.values())


def summary(rows: Sequence[Row], tasks: Sequence[str]) -> Cells:
    """Header and one line a method: group means, both averages, spread, parameters, seconds."""
    groups = [group for group in rows[0].groups]
    averages = ["mean of groups"] if rows[0].of_groups is not None or len(groups) > 1 else []
    header = ["method", *(group.capitalize() for group in groups), *averages, f"mean of {len(tasks)}", "±", "seeds"]
    lines = [[*header, "inserted", "head", "total", "seconds a run"]]
    for row in rows:
        means = [*row.groups.values(), *([row.of_groups] if averages else []), row.of_tasks]
        spread = "" if row.spread is None else f"{row.spread:.2f}"
        counts = [f"{count:,}" for count in (row.inserted, row.head, row.total)]
        lines.append([row.method, *map(percent, means), spread, str(len(row.seeds)), *counts, f"{row.seconds:.1f}"])
    return lines


def per_task(rows: Sequence[Row], tasks: Sequence[str]) -> Cells:
    """Header and one line a task: each method's accuracy, with its standard deviation over seeds."""
    several = len({task.partition("/")[0] for task in tasks}) > 1
    lines = [["task", "group", *(row.method for row in rows)]]
    for task in tasks:
        cells = []
        for row in rows:
            mean, spread = row.tasks.get(task, (None, None))
            cells.append(percent(mean) + (f" ± {spread:.1f}" if spread is not None else ""))
        lines.append([task if several else task.partition("/")[2] or task, group_of(task), *cells])
    if not any(group_of(task) for task in tasks):
        lines = [[line[0], *line[2:]] for line in lines]
    return lines


def percent(value: float | None) -> str:
    return "–" if value is None else f"{value:.1f}"


def markdown(cells: Cells, words: int = 1) -> str:
    """A table whose columns line up, numbers to the right (all but the first `words` columns)."""
    widths = [max(len(line[column]) for line in cells) for column in range(len(cells[0]))]

    def row(line: list[str]) -> str:
        padded = [
            text.ljust(width) if column < words else text.rjust(width)
            for column, (text, width) in enumerate(zip(line, widths, strict=True))
        ]
        return "| " + " | ".join(padded) + " |"

    rule = "|" + "|".join("-" * (w + 2) if c < words else "-" * (w + 1) + ":" for c, w in enumerate(widths)) + "|"
    return "\n".join([row(cells[0]), rule, *map(row, cells[1:])])


def table_md(rows: Sequence[Row], plan: Plan, command: str) -> str:
    """Both tables in Markdown with what they rest on."""
    parts = [
        f"Accuracy in %, backbone `{plan.backbone}`, {describe_protocol(plan)}. ± is the standard deviation over seeds "
        f"of the mean; `{command}` makes this table.",
        markdown(summary(rows, plan.tasks)),
        markdown(per_task(rows, plan.tasks), 2 if any(map(group_of, plan.tasks)) else 1),
    ]
    return "\n\n".join(parts) + "\n"


def page(
    rows: Sequence[Row],
    records: Sequence[dict[str, Any]],
    choices: Sequence[dict[str, Any]],
    failed: Sequence[tuple[str, str]],
    plan: Plan,
    command: str,
    config: str,
) -> bytes:
    """report.html; it needs no other file."""
    overview, tasks = summary(rows, plan.tasks), per_task(rows, plan.tasks)
    sections = [("Methods", _html(overview, 1))]
    finished = [row for row in rows if row.of_tasks is not None]
    if finished:
        points = [(row.method, float(row.inserted), row.of_tasks or 0.0, row.spread or 0.0) for row in finished]
        picture = plots.scatter(points, "inserted parameters (head apart)", f"accuracy, mean of {len(plan.tasks)}, %")
        note = "<p>Bars: standard deviation over seeds, where there are several.</p>"
        sections.append(("Accuracy against parameters", report.figure(picture, "accuracy against parameters") + note))
    if ranks := mean_ranks(records, plan.tasks):
        note = (
            f"<p>Each method's rank on a task (1 is best), mean over {len(plan.tasks)} tasks. Bars: 95 % interval of a "
            "bootstrap over tasks and, where a method has several, seeds. Methods whose bars overlap are not told apart "
            "by these tasks.</p>"
        )
        sections.append(("Mean rank", report.figure(rank_plot(ranks), "mean rank of each method") + note))
    sections.append(("Tasks", _html(tasks, 2 if any(map(group_of, plan.tasks)) else 1)))
    if choices:
        cells = [["task", "method", "settings", "accuracy", "scored on"]]
        cells += [
            [each["task"], each["method"], each["settings"], percent(100 * each["accuracy"]), str(each["scored_on"])]
            for each in choices
        ]
        sections.append(("Settings that were chosen", _html(cells, 3)))
    if failed:
        sections.append(("Runs that failed", report.table(failed)))
    sections += [("Command", report.preformatted(command)), ("Plan", report.preformatted(config))]
    lead = f"{len(records)} runs, {describe_protocol(plan)}"
    return report.page(f"{len(plan.tasks)} tasks, {len(rows)} methods on {plan.backbone}", lead, sections)


def _html(cells: Cells, words: int) -> str:
    def row(line: list[str], tag: str) -> str:
        kinds = ["" if column < words else ' class="n"' for column in range(len(line))]
        inner = (f"<{tag}{kind}>{html.escape(text)}</{tag}>" for text, kind in zip(line, kinds, strict=True))
        return "<tr>" + "".join(inner) + "</tr>"

    return "<table>" + row(cells[0], "th") + "".join(row(line, "td") for line in cells[1:]) + "</table>"


def rank_plot(ranks: Sequence[tuple[str, float, float, float]]) -> bytes:
    """PNG: a method a line, best on top, its mean rank and the interval around it."""
    figure, (axis,) = plots.axes(1, 1, figsize=(7, 1.2 + 0.3 * len(ranks)))
    places = range(len(ranks))
    axis.hlines(places, [low for _, _, low, _ in ranks], [high for *_, high in ranks], color=plots.INK, lw=1.2)
    axis.plot([centre for _, centre, _, _ in ranks], places, "o", color=plots.ACCENT)
    axis.set_yticks(places, [name for name, *_ in ranks])
    axis.invert_yaxis()
    axis.set_xlabel("mean rank (1 is best)")
    axis.grid(axis="x", color="#e3e6ea")
    return plots.png(figure)
