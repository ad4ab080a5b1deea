"""What a run says before, while and after it works, and where it is not what it seems."""

import math
import time
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from peft_core.jobs.reports import remarks
from peft_core.jobs.reports.scores import Scores
from peft_core.jobs.runs import progress, saying
from peft_core.jobs.runs.progress import Progress
from peft_core.jobs.runs.saying import block, few, next_steps, waiting


def test_a_block_of_rows() -> None:
    text = block([("data", "photos: 3 pictures"), ("left out", ""), ("method", "word " * 40)])
    first, *others = text.splitlines()
    assert first == "data       photos: 3 pictures" and "left out" not in text
    assert others[0].startswith("method     word") and others[1].startswith("           word")
    assert max(map(len, others)) <= saying.WIDTH
    assert few(list("abcd"), 2) == "a, b and 2 more" and few(["a"]) == "a"
    assert next_steps(["p predict"]) == "next:\n  p predict"


def test_long_work_says_how_far_it_is(monkeypatch, capsys) -> None:
    monkeypatch.setattr(saying, "EVERY", 0.02)
    with waiting("drawing", 4) as step:
        step()
        time.sleep(0.15)
    assert "drawing: 1 of 4, 0 s left\n" in capsys.readouterr().err
    with pytest.raises(KeyError), waiting("reading"):
        time.sleep(0.05)
        raise KeyError
    assert "reading: 0 s so far\n" in capsys.readouterr().err
    time.sleep(0.05)
    assert not capsys.readouterr().err


def trained(
    monkeypatch: pytest.MonkeyPatch, module: Any, steps: int, batches: int, epochs: int, seconds: list[float]
) -> tuple[Progress, Any]:
    """What tells of a training whose first steps took so many seconds each."""
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock.now)
    monkeypatch.setattr(progress, "planned_steps", lambda trainer, batches: steps)
    trainer = SimpleNamespace(
        global_step=0, is_global_zero=True, num_training_batches=batches, current_epoch=0, max_epochs=epochs
    )
    told: Any = Progress()
    told.on_train_start(trainer, module)
    for index, each in enumerate(seconds):
        clock.now += each
        trainer.global_step += 1
        told.on_train_batch_end(trainer, module, None, None, index)
    return told, trainer


@pytest.mark.parametrize("by_steps", [False, True])
def test_a_line_every_ten_seconds(by_steps: bool, monkeypatch, capsys) -> None:
    module = SimpleNamespace(describe=lambda: "loss 1.0", by_steps=by_steps, steps=40)
    # the first step makes things ready and does not count
    told, trainer = trained(monkeypatch, module, 40, 20, 2, [60.0] + 19 * [2.0])
    told.on_train_epoch_end(trainer, module)
    first, *lines, last = capsys.readouterr().err.splitlines()
    assert (
        first.startswith("step 1/40")
        and lines[0] == "step 6/40" + ("" if by_steps else "  epoch 1/2") + "  loss 1.0  68 s left"
    )
    assert len(lines) == 3 and last.startswith("step 20/40" if by_steps else "epoch 1/2")


def test_how_long_it_will_take(monkeypatch, capsys) -> None:
    module = SimpleNamespace(describe=lambda: "", by_steps=True, steps=1001)
    trained(monkeypatch, module, 1001, 2000, 1, [5.0, 0.3, 0.3, 0.3])
    assert capsys.readouterr().err == "expect     about 5 min of training (0.3 s a step)\n"


def test_too_few_pictures() -> None:
    assert "only 24 pictures" in str(remarks.of_few(24)) and remarks.of_few(30) is None and remarks.of_few(0) is None


def test_accuracy_at_chance() -> None:
    assert "chance" in str(remarks.of_chance(12, [10, 10, 10, 10]))
    assert "0.800" in str(remarks.of_chance(82, [80, 20]))  # the commonest class alone gives 0.8
    assert remarks.of_chance(30, [10, 10, 10, 10]) is None and remarks.of_chance(0, []) is None


def test_zero_shot_that_does_as_well() -> None:
    assert "better than what was trained: 0.500 against 0.450" in str(remarks.of_zero_shot(0.45, 0.5, 40))
    assert "as good as" in str(remarks.of_zero_shot(0.5, 0.5, 40))
    assert remarks.of_zero_shot(0.5, 0.4, 40) is None and remarks.of_zero_shot(0.5, None, 40) is None


def test_a_loss_that_still_falls_or_never_did() -> None:
    falling = [2.0 - 0.015 * step for step in range(100)]
    assert "still falls" in str(remarks.of_loss(falling, 10, epochs=30)) and "--epochs 60" in str(
        remarks.of_loss(falling, 10, 30)
    )
    settled = [2.0 * math.exp(-step / 10) + 0.2 for step in range(100)]
    assert remarks.of_loss(settled, 10) is None
    noisy = [0.5 + 0.3 * (step % 2) for step in range(100)]
    assert remarks.of_loss(noisy) is None
    stuck = [2.30 - 0.001 * step for step in range(50)]
    assert "hardly fallen, from 2.3 to 2.26 (guessing: 2.3)" in str(remarks.of_loss(stuck, 10))
    assert remarks.of_loss([1.0, 0.5]) is None and remarks.of_loss([math.nan] * 9) is None


def test_pictures_learnt_by_heart() -> None:
    assert "99 % of the cases, others in 60 %" in str(remarks.of_gap(0.99, 60, 100))
    assert remarks.of_gap(0.80, 70, 100) is None  # within what 100 pictures can tell
    assert remarks.of_gap(0.99, 3, 4) is None and remarks.of_gap(None, 3, 4) is None


def test_a_class_that_is_never_predicted() -> None:
    counts = [[9, 0, 1], [5, 0, 5], [0, 0, 0]]
    assert str(remarks.of_silence(counts, "abc")).endswith(": b")
    assert remarks.of_silence([[5, 1], [0, 6]], "ab") is None


def test_all_remarks_of_a_run() -> None:
    scores = Scores(torch.tensor([[6, 0], [6, 0]]), torch.empty(0), torch.empty(0))
    history = [{"step": step, "loss": 0.69} for step in range(20)] + [{"step": 20, "accuracy": 0.5}]
    found = remarks.remarks(scores, history, ("a", "b"), zero_shot=0.9, trained=1.0, epochs=5)
    assert len(found) == 5 and not remarks.remarks(None, [], ("a", "b"))
