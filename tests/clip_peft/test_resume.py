"""A run that is killed and started again ends with the bytes of one that was not."""

import signal
from pathlib import Path

import pytest

from tests import killed

killed.preload(__name__, "tests.clip_peft.warm")
RUNS = {
    "coop": {"method": {"name": "coop", "context": 2}},
    "promptsrc": {"method": {"name": "promptsrc", "depth": 2, "template": "{}.", "mean": 2.0}},
    "tip_adapter": {"method": {"name": "tip_adapter", "fine_tune": True}, "lr": 0.01},
    "lp_plus_plus": {"method": {"name": "lp_plus_plus", "pause": 2}, "lr": 1.0, "warmup_epochs": 0, "optimizer": "sgd"},
    "two_stage": {
        "method": {"name": "two_stage", "share": 0.5},
        "cache_views": 0,
        "optimizer": "adamw",
        "stepwise": True,
    },
    "ilm_vp_clip": {
        "method": {"name": "ilm_vp_clip", "template": ["a photo of a {}.", "{}."]},
        "optimizer": "sgd",
        "warmup_epochs": 0,
        "lr": 1.0,
    },
    "clip_lora": {"method": "clip_lora", "cache_views": 0, "steps_per_shot": 0, "epochs": 3},
}


def train(settings: dict, die_at: int | None) -> None:
    from clip_peft.fit import fit

    killed.die_at(die_at)
    fit(**settings)


def run(settings: dict, die_at: int | None = None) -> int | None:
    return killed.exit_of(train, settings, die_at)


@pytest.mark.parametrize(
    "method",
    [
        pytest.param(name, marks=pytest.mark.slow if name in ("two_stage", "ilm_vp_clip", "clip_lora") else ())
        for name in RUNS
    ],
)
def test_killed_at_any_step(method: str, backbone: str, photos: str, tmp_path: Path) -> None:
    common = {"data": photos, "backbone": backbone, "shots": 2, "epochs": 3, "batch_size": 6, "save_every": 0.0}
    common |= {"warmup_epochs": 1, "cache_views": 2, "trainer": {"accelerator": "cpu"}} | RUNS[method]
    assert run(common | {"out": str(tmp_path / "whole")}) == 0
    out = common | {"out": str(tmp_path / "run")}
    for step in (0, 3) if method == "coop" else (3,):  # 2 steps an epoch: in the first, and the last of the second
        assert run(out, step) == -signal.SIGKILL
        assert not (tmp_path / "run/results.json").exists()
    assert run(out) == 0
    for name in ("adapter/adapter.safetensors", "predictions.csv", "metrics.csv"):
        assert (tmp_path / "run" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name
