"""A run that is killed and started again ends with the bytes of one that was not."""

import multiprocessing
import os
import signal
from pathlib import Path

import pytest

SERVER = multiprocessing.get_context("forkserver")  # children start with everything imported, and are real processes
SERVER.set_forkserver_preload(["vision_peft.job", "vision_peft.fit"])


def train(data: str, out: str, die_at: int | None, save_every: float, extra: dict) -> None:
    import torch

    from peft_core.jobs.runs.training import SaveState
    from vision_peft.fit import fit

    torch.set_num_threads(1)
    if die_at is not None:
        plain = SaveState.on_train_batch_end

        def then_die(self, trainer, module, out, batch, index) -> None:
            plain(self, trainer, module, out, batch, index)
            if trainer.current_epoch * trainer.num_training_batches + index == die_at:
                os.kill(os.getpid(), signal.SIGKILL)

        SaveState.on_train_batch_end = then_die
    settings = {"method": {"name": "lora", "rank": 2, "dropout": 0.1}, "drop_path": 0.2, "augment": "flip"} | extra
    fit(data=data, out=out, recipe="digits", batch_size=15, save_every=save_every, **settings)


def run(data: str, out: Path, die_at: int | None = None, save_every: float = 0.0, **extra) -> int:
    settings = {"trainer": {"max_epochs": 3}} | extra
    child = SERVER.Process(target=train, args=(data, str(out), die_at, save_every, settings))
    child.start()
    child.join()
    return child.exitcode


@pytest.fixture(scope="module")
def whole(small_data: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("whole") / "run"
    assert run(small_data, out) == 0
    return out


@pytest.mark.parametrize(
    ("kills", "save_every"),
    [((0, 5, 10), 0.0), pytest.param((3, 7), 0.0, marks=pytest.mark.slow), ((11,), 1e9)],
)
def test_killed_at_any_step(small_data: str, whole: Path, tmp_path: Path, kills: tuple, save_every: float) -> None:
    out = tmp_path / "run"
    for step in kills:  # 4 steps an epoch: in its middle, at its end, at the last step of all
        assert run(small_data, out, step, save_every) == -signal.SIGKILL
        assert not (out / "results.json").exists()
    assert run(small_data, out, save_every=save_every) == 0
    for name in ("adapter/adapter.safetensors", "predictions.csv", "metrics.csv"):
        assert (out / name).read_bytes() == (whole / name).read_bytes(), name
