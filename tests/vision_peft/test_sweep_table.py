"""Means, spreads and ranks against figures worked out by hand."""

from __future__ import annotations

import pytest

from vision_peft.sweep import report as sweep_report
from vision_peft.sweep.plan import make_plan
from vision_peft.sweep.table import best_methods, group_of, make_rows, mean_ranks

TASKS = ("world/objects", "world/scenes", "world/cells", "world/count")


def run(task: str, method: str, seed: int, accuracy: float) -> dict:
    counts = {"inserted": 10, "head": 4, "total": 100, "train_seconds": 1.0, "scoring_seconds": 0.5}
    return {"task": task, "method": method, "seed": seed, "accuracy": accuracy} | counts


def records() -> list[dict]:
    lora = {0: (0.5, 0.7, 0.8, 0.4), 1: (0.6, 0.8, 0.9, 0.5)}
    found = [
        run(task, "lora", seed, value) for seed, each in lora.items() for task, value in zip(TASKS, each, strict=True)
    ]
    found += [run(task, "linear", 0, value) for task, value in zip(TASKS, (0.5, 0.6, 0.9, 0.2), strict=True)]
    return found + [run("world/cells", "vpt", 0, 0.9)]


def test_both_averages_and_the_spread() -> None:
    lora, linear, vpt = make_rows(records(), TASKS)
    assert lora.tasks["world/objects"] == pytest.approx((55.0, 7.0710678))
    assert lora.groups == pytest.approx({"natural": 65.0, "specialised": 85.0, "structured": 45.0})
    assert lora.of_groups == pytest.approx(65.0) and lora.of_tasks == pytest.approx(65.0)
    assert lora.spread == pytest.approx(7.0710678) and lora.seeds == (0, 1) and lora.seconds == pytest.approx(1.5)
    assert linear.of_groups == pytest.approx((55 + 90 + 20) / 3) and linear.of_tasks == pytest.approx(55.0)
    assert linear.spread is None
    assert vpt.of_tasks is None and vpt.groups["natural"] is None and vpt.seeds == ()
    assert best_methods([lora, linear, vpt], 2, ["linear"]) == ["lora"]


def test_groups_are_vtab_s() -> None:
    assert [group_of(task) for task in ("vtab/svhn", "world/retina", "vtab/clevr_count", "digits", "vtab/x")] == [
        "natural", "specialised", "structured", "", "",
    ]  # fmt: skip


def test_ranks_leave_out_unfinished_methods_and_hold_their_mean() -> None:
    ranks = mean_ranks(records(), TASKS)
    assert [name for name, *_ in ranks] == ["lora", "linear"]
    assert ranks[0][1] == pytest.approx((1 + 1 + 2 + 1) / 4) and ranks[1][1] == pytest.approx(1.75)
    assert all(low <= centre <= high for _, centre, low, high in ranks)
    sure = [
        run(task, method, seed, 0.5 + 0.1 * place)
        for task in TASKS
        for place, method in enumerate("abc")
        for seed in (0, 1)
    ]
    assert mean_ranks(sure, TASKS) == [("c", 1.0, 1.0, 1.0), ("b", 2.0, 2.0, 2.0), ("a", 3.0, 3.0, 3.0)]
    assert mean_ranks(sure[:1], TASKS) == []


def test_the_report_needs_no_other_file_and_says_the_protocol() -> None:
    honest, legacy = (
        make_plan(TASKS, ["lora", "linear"], [0], ["lr=1,2"], [], "reference", p) for p in ("honest", "legacy")
    )
    rows = make_rows(records(), TASKS)
    page = sweep_report.page(
        rows, records(), [], [("world/cells <b>", "it & broke")], honest, "vision_peft sweep", "out: x"
    )
    text = page.decode()
    assert 'src="data:image/png' in text and "http" not in text and "&lt;b&gt;" in text
    assert "chosen on val" in text and "test set" not in text
    table = sweep_report.table_md(rows, legacy, "vision_peft sweep")
    assert "epoch and settings were chosen on the test set" in table
    assert "| objects | natural     | 55.0 ± 7.1 |" in table and "–" in table
