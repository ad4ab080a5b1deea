"""Successive halving, its clock and its table, on runs that are made up; and the rate of a range test."""

from pathlib import Path
from typing import Any

import pytest

from peft_core import PeftError
from peft_core.jobs.auto import halving
from peft_core.jobs.auto.halving import Candidate, Halving
from peft_core.jobs.auto.options import count_of, seconds_of
from peft_core.jobs.runs.rates import chosen
from peft_core.jobs.sweep.folder import SweepFolder
from peft_core.jobs.sweep.jobs import Job
from peft_core.jobs.sweep.outcome import Outcome

SECONDS = 2.0
"""Of an epoch of a made-up training."""


def candidates(count: int = 9, epochs: int = 9) -> list[Candidate]:
    return [Candidate(f"m{n}", "r", 1e-3, epochs, 10 * n, {"seed": 0, "n": n}) for n in range(count)]


class Made:
    """A search over trainings that take no time but say so; `score(n, epochs)` is a candidate's accuracy on val."""

    def __init__(
        self, path: Path, patch: pytest.MonkeyPatch, score: Any, fails: tuple[int, ...] = (), **how: Any
    ) -> None:
        self.ran: list[tuple[int, int]] = []
        self.now, self.score, self.fails = 0.0, score, fails
        patch.setattr(halving.time, "monotonic", lambda: self.now)
        folder = SweepFolder(str(path), {}, False, "test")
        folder.write_plan()
        settings = {"limit": None} | how
        self.search = Halving(folder, settings.pop("some", candidates()), [], "data", self.run, **settings)

    def run(self, job: Job) -> Outcome:
        n, epochs = job.settings["n"], job.settings["epochs"]
        assert job.settings["eval_on"] == "val"
        self.ran.append((n, epochs))
        self.now += SECONDS * epochs
        if n in self.fails:
            return Outcome(error="it diverged")
        results = {
            "accuracy": self.score(n, epochs),
            "seconds": {"train": SECONDS * epochs},
            "parameters": {"inserted": 10 * n},
        }
        (self.search.folder.path / job.folder).mkdir(parents=True, exist_ok=True)
        halving.write_files(
            self.search.folder.path / job.folder, {"results.json": halving.json.dumps(results).encode()}
        )
        return Outcome(results)


def test_a_third_goes_on_and_the_first_always(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = Made(tmp_path, monkeypatch, lambda n, epochs: n / 10 if epochs < 9 else 1 - n / 10)
    assert made.search.search() == candidates()[0]  # ahead at the end, behind before
    assert made.ran == [(n, 1) for n in range(9)] + [(8, 3), (7, 3), (6, 3), (0, 3)] + [(8, 9), (7, 9), (0, 9)]


def test_of_equals_the_first_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert Made(tmp_path, monkeypatch, lambda n, epochs: 0.5).search.search() == candidates()[0]


def test_what_fails_or_inserts_too_much_is_left_out_and_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = Made(tmp_path, monkeypatch, lambda n, epochs: n / 10, fails=(6,), budget=75)
    assert made.search.search().method == "m7"
    notes = {row["method"]: row["note"] for row in made.search.rows}
    assert notes["m6"] == "it diverged" and notes["m8"] == "over the budget of 75"
    with pytest.raises(PeftError, match="could be trained: it diverged"):
        Made(tmp_path / "none", monkeypatch, lambda n, epochs: 0, fails=tuple(range(9))).search.search()


def test_time_is_kept_with_the_last_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = Made(tmp_path, monkeypatch, lambda n, epochs: n / 10, limit=60.0)
    found = made.search.search()
    assert made.search.spent + made.search.last(found) <= 60
    rows = [row for row in made.search.rows if row["note"].startswith("cut")]
    assert rows and {n for n, _ in made.ran} >= {0, 1} and "were cut for time" in made.search.summary(found)


def test_a_time_too_short_says_what_is_enough(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(
        PeftError, match="--time 10 s is too short: one whole training takes about .* --time 52s or more"
    ):
        Made(tmp_path, monkeypatch, lambda n, epochs: 0.5, limit=10.0).search.search()


@pytest.mark.parametrize("limit", [None, 60.0])
def test_a_search_that_goes_on_is_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: float | None
) -> None:
    whole = Made(tmp_path / "whole", monkeypatch, lambda n, epochs: n / 10, limit=limit)
    best = whole.search.search()
    broken = Made(tmp_path / "broken", monkeypatch, lambda n, epochs: n / 10, limit=limit)
    run, broken.search.run = broken.search.run, lambda job: run(job) if len(broken.ran) < 4 else 1 / 0  # type: ignore[assignment]
    with pytest.raises(ZeroDivisionError):
        broken.search.search()
    again = Made(tmp_path / "broken", monkeypatch, lambda n, epochs: n / 10, limit=limit)
    assert again.search.search() == best and again.search.rows == whole.search.rows
    assert broken.ran + again.ran == whole.ran


def test_a_range_test_takes_a_tenth_of_the_lowest() -> None:
    assert chosen([1e-4, 1e-3, 1.234e-2, 1e-1], [1.0, 0.9, 0.5, 2.0]) == 1.2e-3
    with pytest.raises(PeftError, match="no learning rate lowers the loss"):
        chosen([1e-4, 1e-3], [1.0, 1.1])


def test_spans_and_sizes() -> None:
    assert [seconds_of(text) for text in ("90", "90s", "10m", "1h30m", "0.5h", None)] == [90, 90, 600, 5400, 1800, None]
    assert [count_of(text) for text in ("20000", "500k", "1M", "1.5m", "20,000", None)] == [
        20000,
        500000,
        10**6,
        1500000,
        20000,
        None,
    ]
    for wrong in ("ten", "10x", "-3m", "0s", ""):
        with pytest.raises(PeftError, match="--time"):
            seconds_of(wrong)
    with pytest.raises(PeftError, match="--budget takes"):
        count_of("a lot")
