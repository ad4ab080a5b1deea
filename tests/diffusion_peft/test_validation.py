"""The loss of pictures that are not trained on, and optimisers by packages of their own."""

import json
import signal
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch.trainer.states import TrainerFn
from safetensors.torch import load_file

from diffusion_peft.commands.fit import fit
from diffusion_peft.data.examples import Examples
from diffusion_peft.data.latents import Captions
from diffusion_peft.data.shares import set_aside
from diffusion_peft.training import job, validation
from diffusion_peft.training.flow import Flow
from diffusion_peft.training.noise import Discrete
from peft_core.errors import PeftError
from tests import killed
from tests.diffusion_peft.conftest import SHORT
from tests.diffusion_peft.test_fit import run as run_in_a_process

killed.preload(__name__, "diffusion_peft.training.job", "diffusers", "transformers.models.clip.modeling_clip")
LORA = {"method": {"name": "lora", "rank": 2}, "prompt": "a toy", "resolution": 16}


def test_times_are_spread_over_those_of_training() -> None:
    x = torch.zeros(1, 4, 8, 8)
    assert Discrete(torch.ones(1000)).spread(x, 4).tolist() == [125, 375, 625, 875]
    assert torch.allclose(
        Flow(shift=3.0).spread(x, 2), 3 * torch.tensor([0.75, 0.25]) / (1 + 2 * torch.tensor([0.75, 0.25]))
    )


def test_pictures_held_out() -> None:
    for count, share, left in ((10, 0.2, 2), (3, 0.01, 1), (3, 0.99, 2)):
        rows = set_aside(count, share, 0, "toys")
        assert len(rows) == left and rows <= {*range(count)} and rows == set_aside(count, share, 0, "toys")
    assert len({frozenset(set_aside(10, 0.2, seed, "toys")) for seed in range(5)}) > 1
    with pytest.raises(PeftError, match="too few to hold some out"):
        set_aside(1, 0.5, 0, "toys")


def test_a_run(sd15: str, toys: str, tmp_path: Path) -> None:
    settings = SHORT | {"sample_count": 0}
    results = fit(data=toys, base=sd15, val="0.4", val_every=2, lr=0.02, out=str(tmp_path / "run"), optimizer="schedule_free",
                  **LORA, **settings)  # fmt: skip
    found = results["validation"]
    rows = [line.split(",") for line in (tmp_path / "run/metrics.csv").read_text(encoding="utf-8").splitlines()]
    at = rows[0].index("val_loss")
    looked = [(int(row[0]), float(row[at])) for row in rows[1:] if row[at]]
    assert [step for step, _ in looked] == [0, 2, 4] and results["pictures"]["train"] == 2
    assert found["before"] == looked[0][1] and found["best"] == min(loss for _, loss in looked)
    kept = tmp_path / "run/snapshots/best"
    assert kept.exists() == bool(found["best_step"]) and not found["stopped_early"]
    if kept.exists():
        assert json.loads((kept / "results.json").read_text(encoding="utf-8"))["steps"] == found["best_step"]
        weights = [load_file(folder / "adapter/unet/adapter.safetensors") for folder in (kept, tmp_path / "run")]
        assert all(torch.equal(weights[0][k], weights[1][k]) for k in weights[0]) == (found["best_step"] == 4)


def test_training_stops_where_it_gets_no_better(monkeypatch: pytest.MonkeyPatch) -> None:
    losses = iter([1.0, 0.8, 0.9, 0.7, 0.75, 0.71, 0.6])
    monkeypatch.setattr(validation, "held_out_loss", lambda module, examples: next(losses))
    trainer: Any = SimpleNamespace(
        global_step=0, current_epoch=0, num_training_batches=9, accumulate_grad_batches=1, is_global_zero=True,
        callback_metrics={}, should_stop=False, fast_dev_run=False, sanity_checking=False,
        state=SimpleNamespace(fn=TrainerFn.FITTING), precision_plugin=SimpleNamespace(forward_context=nullcontext),
        strategy=SimpleNamespace(broadcast=lambda value: value, reduce_boolean_decision=lambda value, all: value),
    )  # fmt: skip
    module: Any = torch.nn.Module()
    module.history, module.steps, module.averaged = [], 9, nullcontext
    kept: list[int] = []
    watch = validation.Validation(Examples([], Captions()), 1, 2, kept.append)
    watch.on_train_start(trainer, module)
    while not trainer.should_stop:
        trainer.global_step += 1
        watch.on_train_batch_end(trainer, module, None, None, trainer.global_step - 1)
    assert trainer.global_step == 5 and kept == [1, 3]
    found, remark = validation.about(module.history, 1, 9)
    assert found["best_step"] == 3 and found["stopped_early"]
    assert remark is not None and "lowest, 0.7000, after 3 steps, and that adapter is kept in snapshots/best" in remark


def test_a_run_killed_after_it_stopped_early_goes_no_further(
    monkeypatch: pytest.MonkeyPatch, sd15: str, toys: str, tmp_path: Path
) -> None:
    monkeypatch.setattr(validation, "held_out_loss", lambda module, examples: 1.0 + len(module.history))
    monkeypatch.setattr(job, "FEWEST_STEPS", 1)  # several epochs
    settings = SHORT | {"sample_count": 0, "steps": 6}
    run, adapters = tmp_path / "run", []
    for _ in range(2):  # the second time from its last checkpoint
        results = fit(data=toys, base=sd15, val="0.4", val_every=1, patience=2, out=str(run), **LORA, **settings)
        assert results["steps"] == 2 and results["validation"]["stopped_early"]
        adapters.append((run / "adapter/unet/adapter.safetensors").read_bytes())
        (run / "results.json").unlink()
    assert adapters[0] == adapters[1]


def test_what_is_refused(sd15: str, toys: str, tmp_path: Path) -> None:
    for given, words in (
        ({"val": "1.5"}, "must be a share between 0 and 1"),
        ({"val": "nowhere"}, "there is no folder nowhere"),
        ({"patience": 2}, "give --val 0.1, or a folder"),
        ({"val": "0.1", "data": "world/control/canny", "method": "controlnet"}, "--val is for training on captioned"),
        ({"optimizer": "prodigy"}, "give --lr 1, not 0.0001"),
        ({"optimizer": "schedule_free", "ema": 0.9}, "leave --ema out"),
    ):  # fmt: skip
        with pytest.raises(PeftError, match=words):
            fit(**{"data": toys, "base": sd15, "lr": 1e-4, "out": str(tmp_path / "run")} | LORA | given)  # type: ignore[arg-type]


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["prodigy", "schedule_free"])
def test_a_killed_run_ends_with_the_same_bytes(optimizer: str, sd15: str, toys: str, tmp_path: Path) -> None:
    settings = dict(
        data=toys, base=sd15, val=toys, val_every=2, patience=5, optimizer=optimizer, lr=1.0 if optimizer == "prodigy" else 0.01,
        steps=6, sample_count=0, save_every=0.0, cache="off", trainer={"accelerator": "cpu"}, **LORA,
    )  # fmt: skip
    assert run_in_a_process(tmp_path / "whole", **settings) == 0
    assert run_in_a_process(tmp_path / "killed", 3, **settings) == -signal.SIGKILL
    assert run_in_a_process(tmp_path / "killed", **settings) == 0
    for name in ("adapter/unet/adapter.safetensors", "metrics.csv"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "killed" / name).read_bytes(), name
