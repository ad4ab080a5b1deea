"""Optimiser, schedule and log of a run, and what is told where it fails."""

import math
import sys
from typing import Any

import pytest
import torch
from prodigyopt import Prodigy
from schedulefree import AdamWScheduleFree
from torch import nn

from peft_core.errors import PeftError
from peft_core.jobs.runs.folder import Diverged
from peft_core.jobs.runs.learning import Learning
from peft_core.jobs.runs.progress import Progress
from peft_core.jobs.runs.training import SaveState, make_trainer, quiet, read_checkpoint

CPU = {"accelerator": "cpu", "max_epochs": 2}


class Line(Learning):
    """Learns y = 3 x from batches of numbers; the step's loss is kept to compare the log with."""

    def __init__(self, steps: int, wrong: int | None = None, **learning) -> None:
        super().__init__(steps, **learning)
        self.net = nn.Linear(1, 1)
        nn.init.zeros_(self.net.weight)
        nn.init.ones_(self.net.bias)
        self.losses: list[float] = []
        self.rates_used: list[float] = []
        self.wrong = wrong

    def adapted(self) -> dict[str, nn.Module]:
        return {"net": self.net}

    def training_step(self, batch: torch.Tensor, index: int) -> torch.Tensor:
        loss = (self.net(batch) - 3 * batch).square().mean()
        loss = loss * math.nan if self.wrong == self.trainer.global_step else loss
        self.losses.append(loss.item())
        self.rates_used.append(self.optimizers().param_groups[0]["lr"])
        self.count(loss)
        return loss

    def on_save_checkpoint(self, checkpoint) -> None:
        checkpoint["state_dict"] = {}
        checkpoint["seconds"], checkpoint["history"] = 0.0, self.history


class Batches:
    def __len__(self) -> int:
        return 5

    def __iter__(self):
        return (torch.full((2, 1), float(n)) for n in range(1, 6))


def fitted(tmp_path, flags=CPU, **options) -> Line:
    module = Line(10, **options)
    with quiet():
        make_trainer(flags, [SaveState(tmp_path, 1e9, lambda: None), Progress()], tmp_path).fit(module, Batches())
    return module


def test_weight_decay_spares_vectors() -> None:
    module = Line(10, weight_decay=0.3)
    module.trainer = make_trainer(CPU, [])
    groups = module.configure_optimizers()["optimizer"].param_groups
    decay = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
    assert decay == {id(module.net.weight): 0.3, id(module.net.bias): 0.0}


@pytest.mark.parametrize("kind", ["adamw", "adam", "sgd"])
def test_schedule(tmp_path, kind: str) -> None:
    module = fitted(tmp_path, optimizer=kind, lr=0.1, warmup=0.4, final_lr=0.1)
    rises = [0.1 * (t + 1) / 4 for t in range(4)]
    falls = [0.1 * (0.1 + 0.9 * (1 + math.cos(math.pi * (t - 4) / 6)) / 2) for t in range(4, 10)]
    assert module.rates_used == pytest.approx(rises + falls)  # the first step has a quarter of the rate, not none


def test_the_log_says_what_the_step_was_made_with(tmp_path, capsys: pytest.CaptureFixture) -> None:
    module = fitted(tmp_path, optimizer="sgd", lr=1e-3, warmup=0.4)
    assert [row["step"] for row in module.history] == list(range(1, 11))
    assert [row["lr"] for row in module.history] == pytest.approx(module.rates_used)
    assert [row["loss"] for row in module.history] == pytest.approx(module.losses)
    said = capsys.readouterr().err.splitlines()
    means = [sum(module.losses[start : start + 5]) / 5 for start in (0, 5)]
    assert [line.split("loss ")[1].split()[0] for line in said] == [f"{mean:.4f}" for mean in means]


def test_mezo_steps_by_two_losses_of_each_batch(tmp_path) -> None:
    module = fitted(tmp_path, optimizer="mezo", lr=1e-3, optimizer_settings={"eps": 1e-2})
    assert module.trainer.global_step == 10 and len(module.losses) == 20
    assert module.net.weight.item() > 0.1  # on its way to 3
    refused = {"gradient_clip_val": 1.0}, {"accumulate_grad_batches": 2}
    for flags in refused:
        with pytest.raises(
            PeftError, match=f"mezo computes no gradients, on one device: leave --trainer.{[*flags][0]} out"
        ):
            fitted(tmp_path, CPU | flags, optimizer="mezo")


@pytest.mark.parametrize("name", ["prodigy", "schedule_free"])
def test_optimizers_of_packages_step_as_by_themselves(tmp_path, name: str) -> None:
    lr = {"prodigy": 1.0, "schedule_free": 0.1}[name]
    module = fitted(tmp_path, optimizer=name, lr=lr, warmup=0.4, final_lr=1.0, weight_decay=0.1)
    alone = Line(10)
    groups = [{"params": [alone.net.weight], "weight_decay": 0.1}, {"params": [alone.net.bias], "weight_decay": 0.0}]
    own: Any = (
        Prodigy(groups, lr=1.0, use_bias_correction=True, safeguard_warmup=True)
        if name == "prodigy"
        else AdamWScheduleFree(groups, lr=lr, warmup_steps=4)
    )
    for step in range(10):
        if name == "schedule_free":
            own.train()
        for group in own.param_groups:
            group["lr"] = lr * (min(4, step + 1) / 4 if name == "prodigy" else 1)
        own.zero_grad()
        x = torch.full((2, 1), float(step % 5 + 1))
        (alone.net(x) - 3 * x).square().mean().backward()
        own.step()
    assert torch.equal(module.net.weight, alone.net.weight) and torch.equal(module.net.bias, alone.net.bias)
    if name == "schedule_free":
        own.eval()
        before = module.net.weight.clone()
        for _ in range(2):  # a look moves nothing
            with module.averaged():
                assert torch.equal(module.net.weight, alone.net.weight) and not torch.equal(module.net.weight, before)
            assert torch.equal(module.net.weight, before) and module.averaging.param_groups[0]["train_mode"]
        module.finish()
        with module.averaged():
            assert torch.equal(module.net.weight, alone.net.weight)


def test_packages_that_are_missing_and_rates_that_are_none(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(PeftError, match="a factor on it, usually 1: give --lr 1, not 0.001"):
        Line(10, optimizer="prodigy", lr=1e-3)
    monkeypatch.setitem(sys.modules, "schedulefree", None)
    with pytest.raises(PeftError, match="needs schedulefree: pip install"):
        Line(10, optimizer="schedule_free")


@pytest.mark.parametrize(
    ("step", "kept"), [(1, "no adapter is kept"), (6, "the adapter of the last whole epoch is kept")]
)
def test_a_loss_that_is_no_number(tmp_path, step: int, kept: str) -> None:
    with pytest.raises(Diverged, match=f"the loss became nan near step {step + 1}.*{kept}.*lower --lr"):
        fitted(tmp_path, wrong=step)


def test_weights_that_are_no_numbers_are_not_kept(tmp_path) -> None:
    with pytest.raises(Diverged, match="trained weights became no numbers near step 1"):
        fitted(tmp_path, CPU | {"max_steps": 1}, optimizer="sgd", lr=1e38, warmup=0.0)
    assert not (tmp_path / "last.ckpt").exists()


class Payload:
    def __reduce__(self):
        return print, ("code ran",)


@pytest.mark.parametrize(
    "write",
    [
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(b"PK\x03\x04" + b"\x00" * 100),
        lambda path: torch.save({"state_dict": Payload()}, path),
        lambda path: torch.save([1], path),
        lambda path: path.write_bytes(__import__("pickle").dumps(Payload())),
        lambda path: path.mkdir(),
    ],
)
def test_damaged_checkpoints(tmp_path, write, capsys: pytest.CaptureFixture) -> None:
    write(tmp_path / "last.ckpt")
    with pytest.raises(PeftError, match="last.ckpt cannot be read .*delete it"):
        read_checkpoint(tmp_path / "last.ckpt")
    assert "code ran" not in capsys.readouterr().out


def test_a_truncated_checkpoint(tmp_path) -> None:
    torch.save({"state_dict": {"x": torch.zeros(1000)}, "epoch": 1, "global_step": 1}, tmp_path / "last.ckpt")
    assert read_checkpoint(tmp_path / "last.ckpt")["epoch"] == 1
    whole = (tmp_path / "last.ckpt").read_bytes()
    for end in (10, len(whole) // 2, len(whole) - 10):
        (tmp_path / "last.ckpt").write_bytes(whole[:end])
        with pytest.raises(PeftError, match="last.ckpt cannot be read"):
            read_checkpoint(tmp_path / "last.ckpt")


def test_a_checkpoint_whose_adapters_are_called_otherwise_does_not_go_on() -> None:
    module = Line(10)
    with pytest.raises(PeftError, match=r"a version in which net\.peft\.adapter\.output\.A stood.*--overwrite"):
        module.on_load_checkpoint({"state_dict": module.state_dict() | {"net.peft.adapter.output.A": torch.zeros(1)}})
