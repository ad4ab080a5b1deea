"""Killed in any stage and started again, the search ends with the bytes of one that was not."""

import os
import signal
from pathlib import Path

from tests.killed import exit_of, preload
from tests.vision_peft.noah.conftest import BUDGET, SMALL

preload(__name__, "vision_peft.noah.run", "vision_peft.noah.command")


def work(data: str, backbone: str, out: str, training: int | None, scored: int | None) -> None:
    """Runs all stages, and dies at that training step or at that scored subnet of this process."""
    import torch

    from peft_core.jobs.runs.training import SaveState
    from vision_peft.noah import searching
    from vision_peft.noah.command import noah
    from vision_peft.noah.fitness import Fitness

    torch.set_num_threads(1)
    searching.EVERY = 0.0
    plain_step, plain_score = SaveState.on_train_batch_end, Fitness.__call__
    count = {"step": 0, "score": 0}

    def step(self, *args) -> None:
        plain_step(self, *args)
        count["step"] += 1
        if count["step"] == training:
            os.kill(os.getpid(), signal.SIGKILL)

    def score(self, subnet):
        count["score"] += 1
        if count["score"] == scored:
            os.kill(os.getpid(), signal.SIGKILL)
        return plain_score(self, subnet)

    SaveState.on_train_batch_end, Fitness.__call__ = step, score
    training_options = SMALL["training"] | {"save_every": 0.0}
    noah(data=data, backbone=backbone, out=out, budget=BUDGET, **SMALL | {"training": training_options})


def run(data: str, backbone: str, out: Path, training: int | None = None, scored: int | None = None) -> int | None:
    return exit_of(work, data, backbone, str(out), training, scored)


def test_killed_at_each_stage(small_data: str, tiny_backbone: str, searched: Path, tmp_path: Path) -> None:
    out = tmp_path / "noah"
    assert run(small_data, tiny_backbone, out, training=6) == -signal.SIGKILL  # of 8 steps of the supernet
    assert not (out / "supernet" / "results.json").exists()
    assert run(small_data, tiny_backbone, out, scored=14) == -signal.SIGKILL  # in the second of three generations
    assert len((out / "search" / "scores.csv").read_text().splitlines()) == 14
    assert run(small_data, tiny_backbone, out, scored=6) == -signal.SIGKILL
    assert run(small_data, tiny_backbone, out, training=4) == -signal.SIGKILL  # of the chosen subnet's 10 steps
    assert not (out / "retrain" / "results.json").exists()
    assert run(small_data, tiny_backbone, out) == 0
    names = ["supernet/adapter/adapter.safetensors", "supernet/metrics.csv", "retrain/adapter/adapter.safetensors"]
    names += [
        "retrain/predictions.csv",
        *(f"search/{name}" for name in ("candidates.csv", "subnet.yaml", "search.png", "subnet.png")),
    ]
    for name in (*names, "search/adapter/adapter.safetensors"):
        assert (out / name).read_bytes() == (searched / name).read_bytes(), name
