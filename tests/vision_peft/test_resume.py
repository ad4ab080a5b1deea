"""A run that is killed and started again ends with the bytes of one that was not."""

import signal
from pathlib import Path

import pytest

from tests import killed

killed.preload(__name__, "vision_peft.job", "vision_peft.fit")


def train(data: str, out: str, die_at: int | None, save_every: float, extra: dict) -> None:
    from vision_peft.fit import fit

    killed.die_at(die_at)
    settings = {"method": {"name": "lora", "rank": 2, "dropout": 0.1}, "drop_path": 0.2, "augment": "flip"} | extra
    fit(data=data, out=out, recipe="digits", batch_size=15, save_every=save_every, **settings)


def run(data: str, out: Path, die_at: int | None = None, save_every: float = 0.0, **extra) -> int | None:
    settings = {"trainer": {"max_epochs": 3}} | extra
    return killed.exit_of(train, data, str(out), die_at, save_every, settings)


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


@pytest.mark.parametrize(
    "optimizer", [pytest.param(name, marks=pytest.mark.slow) for name in ("mezo", "galore", "schedule_free")]
)
def test_optimizers_of_their_own_state(optimizer: str, small_data: str, tmp_path: Path) -> None:
    settings = {"optimizer": optimizer, "trainer": {"max_epochs": 2}, "method": {"name": "full"}, "mezo": {"eps": 1e-2}}
    assert run(small_data, tmp_path / "whole", **settings) == 0
    assert run(small_data, tmp_path / "run", 5, **settings) == -signal.SIGKILL
    assert run(small_data, tmp_path / "run", **settings) == 0
    for name in ("adapter/adapter.safetensors", "metrics.csv"):
        assert (tmp_path / "run" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name


def test_killed_in_what_a_method_remembers(small_data: str, tiny_backbone: str, tmp_path: Path) -> None:
    """Its mask is chosen by the data, again and again; tests/peft_core/test_resumed_methods.py has all such methods."""
    method = {"name": "fish_dip", "every": 3, "samples": 3}
    settings = {"method": method, "backbone": tiny_backbone, "trainer": {"max_epochs": 2}}
    assert run(small_data, tmp_path / "whole", **settings) == 0
    assert run(small_data, tmp_path / "run", 4, **settings) == -signal.SIGKILL
    assert run(small_data, tmp_path / "run", **settings) == 0
    for name in ("adapter/adapter.safetensors", "predictions.csv"):
        assert (tmp_path / "run" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name
