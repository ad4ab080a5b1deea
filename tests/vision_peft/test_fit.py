"""Training from a data set to a run folder."""

import csv
import json
import os
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from peft_data import open_data
from safetensors.torch import load_file

from peft_core.errors import PeftError
from peft_core.jobs.runs.folder import RunFolder
from peft_core.registry import make_method
from tests.killed import left_alone
from tests.vision_peft.conftest import SHORT, SMALL
from vision_peft.commands import main
from vision_peft.fit import fit
from vision_peft.job import next_commands


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "adapter" / "adapter.safetensors")


def farthest(one: Path, other: Path) -> float:
    first, second = weights(one), weights(other)
    assert first.keys() == second.keys()
    return max((first[key] - second[key]).abs().max().item() for key in first)


@pytest.mark.slow  # of one epoch, test_run_folder holds the accuracy
def test_five_epochs_of_lora_read_digits(tmp_path: Path) -> None:
    line = f"fit --backbone reference --method lora --data digits --out {tmp_path}/run --seed 0 --trainer.max_epochs 5"
    assert main(line.split()) == 0
    assert json.loads((tmp_path / "run" / "results.json").read_text())["accuracy"] >= 0.95


def test_what_a_run_says(small_data: str, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(small_line(small_data, tmp_path / "run")) == 0
    said = capsys.readouterr()
    assert said.out.startswith(f"{tmp_path}/run: accuracy ")
    found, *lines = said.err.splitlines()
    assert "84 pictures of 3 classes" in found and "with 95 %) on test" in said.out
    labels = [line.split()[0] for line in lines if line[:1].strip()]
    assert [label for label in labels if label in ("split", "backbone", "method", "trains", "steps", "scored", "writes")] == [
        "split", "backbone", "method", "trains", "steps", "scored", "writes",
    ]  # fmt: skip
    assert labels[-1] == "next:" and lines[-3].startswith(f"  vision_peft predict --run {tmp_path}/run --top 3 ")
    epochs = [line for line in lines if line.startswith("epoch")]
    assert [text.split()[:2] for text in epochs] == [["epoch", f"{epoch}/3"] for epoch in range(1, 4)]


def test_run_folder(short_run: Path) -> None:
    files = (
        "adapter config.yaml confusion.png curves.png last.ckpt metrics.csv predictions.csv report.html results.json"
    )
    assert sorted(os.listdir(short_run)) == files.split()
    results = json.loads((short_run / "results.json").read_text())
    assert results["accuracy"] > 0.5 and len(results["per_class"]) == 10
    assert results["protocol"] == "honest" and results["evaluated_on"] == "test" and results["seed"] == 0
    assert results["parameters"]["inserted"] == 36864 and results["parameters"]["head"] == 970
    assert results["checkpoint_family"] == "reference" and results["normalisation"]["mean"] == [0.5, 0.5, 0.5]
    assert results["seconds"]["train"] > 0 and results["peak_memory"]["bytes"] > 0 and "torch" in results["versions"]
    card = json.loads((short_run / "adapter" / "adapter.json").read_text())
    assert card["class_names"] == list("0123456789") and card["input_size"] == [40, 40]
    assert card["accuracy"] == results["accuracy"]
    rows = list(csv.DictReader((short_run / "predictions.csv").open()))
    assert len(rows) == len(open_data("digits").test)
    right = sum(int(row["correct"]) for row in rows)
    assert right / len(rows) == pytest.approx(results["accuracy"])
    report = (short_run / "report.html").read_text()
    assert "data:image/png;base64," in report and 'src="http' not in report and "taken for" in report
    assert (short_run / "last.ckpt").stat().st_size < 1e6  # the trainable part and the optimiser's, not the backbone


def test_finished_run_is_left_alone(short_run: Path, capsys: pytest.CaptureFixture) -> None:
    left_alone(main, short_run, "accuracy", capsys)


def test_config_runs_it_again(small_run: Path, tmp_path: Path) -> None:
    out = tmp_path / "again"
    assert main(["fit", "--config", str(small_run / "config.yaml"), "--out", str(out)]) == 0
    for name in ("adapter/adapter.safetensors", "predictions.csv"):
        assert (out / name).read_bytes() == (small_run / name).read_bytes()
    one, other = (yaml.safe_load((folder / "config.yaml").read_text()) for folder in (small_run, out))
    assert one | {"out": ""} == other | {"out": ""}


def test_another_run_in_the_folder(small_data: str, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    out = tmp_path / "run"
    fit(data=small_data, out=str(out), **SMALL)
    old = weights(out)
    assert main(["fit", "--config", str(out), "--lr", "0.5"]) == 2
    assert "holds another run (lr is" in capsys.readouterr().err
    assert (weights(out)["head.weight"] == old["head.weight"]).all()
    fit(data=small_data, out=str(out), seed=1, overwrite=True, **SMALL)
    assert (weights(out)["head.weight"] != old["head.weight"]).any()
    assert yaml.safe_load((out / "config.yaml").read_text())["overwrite"] is False
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.png").touch()
    with pytest.raises(PeftError, match="holds files that are no run's"):
        fit(data=small_data, out=str(tmp_path / "photos"), overwrite=True, **SMALL)
    assert os.listdir(tmp_path / "photos") == ["cat.png"]


def test_values_come_from_recipe_then_config_then_flags(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("lr: 0.25\nmethod: {name: lora, rank: 2}\ntrainer: {max_epochs: 7}\n")
    from vision_peft.fit import fit as command

    layers = command.read_line(f"--data digits --config {tmp_path}/mine.yaml --trainer.max_epochs 3".split())
    settings = command.resolve(layers)
    assert settings["recipe"] == "digits" and settings["lr"] == 0.25
    assert settings["method"].options["rank"] == 2 and settings["trainer"].options == {"max_epochs": 3}
    assert command.resolve([("", {"data": "digits"})])["trainer"].options["max_epochs"] > 1
    vtab = command.resolve([("", {"data": "digits", "recipe": "vtab"})])
    assert (vtab["lr"], vtab["weight_decay"], vtab["batch_size"], vtab["drop_path"]) == (1e-3, 1e-4, 64, 0.1)
    assert vtab["trainer"].options == {"max_epochs": 100} and vtab["warmup"] * 100 == 10


def test_val_is_for_choosing(small_data: str, tmp_path: Path) -> None:
    results = fit(data=small_data, out=str(tmp_path / "run"), eval_on="val", **SMALL)
    assert results["pictures"] == {"train": 48, "val": 12} and results["evaluated_on"] == "val"


def test_without_anything_to_score_on(small_data: str, tmp_path: Path) -> None:
    shutil.copytree(Path(small_data) / "train", tmp_path / "data")
    data = {"name": str(tmp_path / "data"), "val": 0.0, "test": 0.0}
    results = fit(data=data, out=str(tmp_path / "run"), **SMALL)
    assert results["accuracy"] is None and not (tmp_path / "run" / "predictions.csv").exists()


def test_legacy_reports_the_best_epoch_and_says_so(small_data: str, tmp_path: Path) -> None:
    settings = SMALL | {"trainer": {"max_epochs": 3}}
    results = fit(data=small_data, out=str(tmp_path / "run"), protocol="legacy", lr=0.05, **settings)
    rows = list(csv.DictReader((tmp_path / "run" / "metrics.csv").open()))
    scored = [float(row["accuracy"]) for row in rows if row["accuracy"]]
    assert len(scored) == 3 and results["accuracy"] == pytest.approx(max(scored))
    assert results["epoch"] == scored.index(max(scored)) + 1
    assert "chosen on the test set" in (tmp_path / "run" / "report.html").read_text()


def test_accumulated_batches_equal_large_ones(small_data: str, small_run: Path, tmp_path: Path) -> None:
    half = SMALL | {"batch_size": 10, "trainer": SMALL["trainer"] | {"accumulate_grad_batches": 2}}
    fit(data=small_data, out=str(tmp_path / "run"), **half)
    assert farthest(small_run, tmp_path / "run") < 1e-5


def test_kept_features_change_nothing(small_data: str, tmp_path: Path) -> None:
    late = {"data": small_data, "method": {"name": "lora", "blocks": [9, 10, 11]}} | SMALL
    kept = fit(out=str(tmp_path / "kept"), **late)
    anew = fit(out=str(tmp_path / "anew"), cache_prefix="off", **late)
    assert kept["cached_blocks"] == 9 and anew["cached_blocks"] == 0
    assert farthest(tmp_path / "kept", tmp_path / "anew") < 1e-4
    for name, wrong in {"augment": "flip", "drop_path": 0.1, "method": "lora"}.items():
        with pytest.raises(PeftError, match="features cannot be kept, because"):
            fit(out=str(tmp_path / "not"), **(late | {name: wrong, "cache_prefix": "on"}))


@pytest.mark.slow
def test_compiled(small_data: str, tiny_backbone: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    used = []
    plain = torch.nn.Module.compile

    def eager(self: torch.nn.Module) -> None:  # needs no C++ compiler
        used.append(self)
        plain(self, backend="eager")

    monkeypatch.setattr(torch.nn.Module, "compile", eager)
    settings = {"data": small_data, "backbone": tiny_backbone} | SMALL | {"batch_size": 12}  # all of one size
    fit(out=str(tmp_path / "plain"), **settings)
    fit(out=str(tmp_path / "run"), compile=True, **settings)
    assert used and farthest(tmp_path / "plain", tmp_path / "run") < 1e-4


def test_bfloat16(small_data: str, small_run: Path, tmp_path: Path) -> None:
    settings = SMALL | {"trainer": SMALL["trainer"] | {"precision": "bf16-mixed"}}
    fit(data=small_data, out=str(tmp_path / "run"), **settings)
    assert all(value.dtype == torch.float32 for value in weights(tmp_path / "run").values())
    assert 0 < farthest(small_run, tmp_path / "run") < 0.1


def small_line(small_data: str, out: Path) -> list[str]:
    flags = "--recipe digits --batch_size 20 --trainer.max_epochs 3 --trainer.accelerator cpu"
    return ["fit", "--data", small_data, "--out", str(out), *flags.split()]


def test_loss_that_is_no_number_keeps_the_last_adapter(
    small_data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    plain = torch.nn.functional.cross_entropy
    calls = []

    def broken(*arguments: object, **options: object) -> torch.Tensor:
        calls.append(1)
        return plain(*arguments, **options) * (float("nan") if len(calls) > 4 else 1.0)

    monkeypatch.setattr("torch.nn.functional.cross_entropy", broken)
    assert main(small_line(small_data, tmp_path / "run")) == 2
    assert "the loss became nan near step 5, so training stops" in capsys.readouterr().err
    assert all(value.isfinite().all() for value in weights(tmp_path / "run").values())
    assert torch.load(tmp_path / "run" / "last.ckpt", weights_only=True)["global_step"] == 3
    assert not (tmp_path / "run" / "results.json").exists()


def test_full_disk_keeps_the_old_files(
    small_data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    plain, saves = os.fsync, []

    def full(handle: int) -> None:
        saves.append(os.readlink(f"/proc/self/fd/{handle}"))
        if sum("last.ckpt" in name for name in saves) == 2:
            raise OSError(28, "No space left on device")
        plain(handle)

    monkeypatch.setattr(os, "fsync", full)
    line = small_line(small_data, tmp_path / "run")
    assert main(line) == 2
    assert "No space left on device" in capsys.readouterr().err
    assert torch.load(tmp_path / "run" / "last.ckpt", weights_only=True)["global_step"] == 3
    assert not [name for name in os.listdir(tmp_path / "run") if name.startswith(".")]
    monkeypatch.undo()
    assert main(line) == 0  # and it goes on from there


def test_mistakes_leave_no_folder(tmp_path: Path) -> None:
    for settings in (
        {"backbone": "nope"},
        {"method": {"name": "lora", "rank": 1000}},
        {"augment": "no"},
        {"batch_size": 0},
    ):
        with pytest.raises(ValueError):
            fit(out=str(tmp_path / "run"), **({"data": "digits"} | SHORT | settings))
    assert not (tmp_path / "run").exists()


def test_a_merge_is_offered_where_there_is_one() -> None:
    folder, said = RunFolder("runs/x", "vision_peft fit"), {}
    for name in ("lora", "lst"):
        said[name] = [line.split()[1] for line in next_commands(folder, make_method(name), "a.png")]
    assert said == {"lora": ["predict", "merge", "export"], "lst": ["predict", "export"]}
