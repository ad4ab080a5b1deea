"""Training from a folder of pictures to a run folder."""

import csv
import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from clip_peft.fit import fit
from clip_peft.use import report
from tests.clip_peft.conftest import SHORT


def test_run_folder(coop_run: Path) -> None:
    files = (
        "adapter config.yaml confusion.png curves.png last.ckpt metrics.csv predictions.csv report.html results.json"
    )
    assert sorted(os.listdir(coop_run)) == files.split()
    results = json.loads((coop_run / "results.json").read_text())
    assert results["per_class"].keys() == {"black", "blue", "green"} and results["classes"] == "base"
    assert 0 <= results["accuracy"] <= 1 and 0 <= results["ece"] <= 1 and sum(b["count"] for b in results["bins"]) == 12
    assert results["parameters"]["trainable"] == 4 * 32 and results["cached_views"] == 2 and results["epoch"] == 3
    assert results["pictures"] == {"train": 12, "scored": 12} and results["evaluated_on"] == "test"
    card = json.loads((coop_run / "adapter" / "adapter.json").read_text())
    assert card["class_names"] == ["black", "blue", "green"] and card["input_size"] == [32, 32]
    assert card["adaptations"][0]["method"] == "coop" and card["accuracy"] == results["accuracy"]
    assert load_file(coop_run / "adapter" / "adapter.safetensors")["context"].shape == (4, 32)
    assert len(list(csv.DictReader((coop_run / "predictions.csv").open()))) == 12
    assert "reliability" in (coop_run / "report.html").read_text()
    assert (coop_run / "last.ckpt").stat().st_size < 1e5


METHODS = {
    "zero_shot": {},
    "kgcoop": {},
    "cocoop": {},
    "prograd": {"context": 5},
    "maple": {"depth": 2},
    "promptsrc": {"depth": 2, "template": "a photo of a {}."},
    "tpt": {"views": 5},
    "clip_adapter": {},
    "tip_adapter": {},
    "taskres": {},
    "linear_probe": {},
    "clip_lora": {},
    "bitfit": {"tower": "text"},
    "vpt": {"tokens": 2, "tower": "image"},
}
FROZEN = {"kgcoop", "cocoop", "prograd", "clip_adapter", "tip_adapter", "taskres", "linear_probe", "bitfit"}


@pytest.mark.parametrize("method", METHODS)
def test_every_method_is_trained_kept_and_read_again(method: str, backbone: str, photos: str, tmp_path: Path) -> None:
    choice = {"name": method, **METHODS[method]}
    short = SHORT | {"epochs": 1, "steps_per_shot": 0, "shots": 2}
    results = fit(data=photos, backbone=backbone, method=choice, out=str(tmp_path / "run"), **short)
    assert results["cached_views"] == (2 if method in FROZEN else 0)
    again = report(str(tmp_path / "run"), None, "test", "trained", cache=method != "vpt", quiet=True)
    for key in ("accuracy", "ece", "per_class"):
        assert again[key] == pytest.approx(results[key], abs=1e-6)
    trained = json.loads((tmp_path / "run/results.json").read_text())["parameters"]["trainable"]
    assert (trained == 0) == (method in ("zero_shot", "tpt", "tip_adapter"))
    if method == "tip_adapter":
        assert results["chosen_on_val"]["val_pictures"] == 12 and results["chosen_on_val"]["val_accuracy"] >= 1 / 6


def test_bf16_trains_float32_parameters(backbone: str, photos: str, tmp_path: Path) -> None:
    choice = {"name": "coop", "context": 4}
    results = fit(data=photos, backbone=backbone, method=choice, out=str(tmp_path / "run"), precision="bf16", **SHORT)
    assert results["precision"] == "bf16 autocast in training, float32 parameters"
    context = load_file(tmp_path / "run/adapter/adapter.safetensors")["context"]
    assert context.dtype == torch.float32 and not torch.equal(context, context.bfloat16().float())


def test_caching_changes_nothing_but_time(backbone: str, photos: str, tmp_path: Path) -> None:
    """Without augmentation, cached features are those that each step would make."""
    choice = {"name": "kgcoop", "init": "a photo"}
    common = SHORT | {"augment": "none", "epochs": 2}
    for views in (2, 0):
        fit(
            data=photos,
            backbone=backbone,
            method=choice,
            out=str(tmp_path / str(views)),
            **common | {"cache_views": views},
        )
    one, other = (load_file(tmp_path / name / "adapter/adapter.safetensors")["context"] for name in "20")
    torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-5)
