"""Training from a folder of pictures to a run folder."""

import csv
import io
import json
import os
import shutil
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from clip_peft.commands import main
from clip_peft.export import export
from clip_peft.fit import fit
from clip_peft.use import report
from peft_core import list_methods
from peft_core.jobs.runs.load import load_run
from peft_core.registry import find_method
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


GRAFTS = {"clip_lora": {}, "bitfit": {"tower": "text"}, "vpt": {"tokens": 2, "tower": "image"}}
OTHERS = {
    name: asdict(next(iter(find_method(name).examples())))
    for name in list_methods(grafts=False)
    if name != "coop" and find_method(name).task == "classify"  # type: ignore[attr-defined]
}


@pytest.mark.parametrize(
    "method",
    [
        pytest.param(name, marks=pytest.mark.slow if "generated" in own else ())
        for name, own in (GRAFTS | OTHERS).items()
    ],
)
def test_every_method_is_trained_kept_and_read_again(method: str, backbone: str, photos: str, tmp_path: Path) -> None:
    settings = GRAFTS | OTHERS
    choice = {"name": method, **settings[method], **({"views": 5} if "views" in settings[method] else {})}
    short = SHORT | {"epochs": 1, "steps_per_shot": 0, "shots": 2}
    results = fit(data=photos, backbone=backbone, method=choice, out=str(tmp_path / "run"), **short)
    again = report(str(tmp_path / "run"), None, "test", "trained", cache=method != "vpt", quiet=True)
    for key in ("accuracy", "ece", "per_class"):
        assert again[key] == pytest.approx(results[key], abs=1e-6)
    count = json.loads((tmp_path / "run/results.json").read_text())["parameters"]["trainable"]
    encoder = load_run(tmp_path / "run").encoder
    remembers = hasattr(encoder.whole.learner, "remember")
    assert results["cached_views"] == (2 if encoder.frozen and (count or remembers) else 0)
    if method in OTHERS:
        counts = find_method(method).vit_b16
        stated = [n for hyper, n in counts if hyper.items() <= settings[method].items()] or [n for _, n in counts]
        assert bool(count) == bool(stated[-1])
    chosen = results["chosen"]
    assert not chosen or (chosen["on"], chosen["pictures"]) == ("val", 12) and chosen["accuracy"] >= 1 / 6


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


def recipe(name: str, **options) -> str:
    from clip_peft.fit import recipe_of
    from peft_core.jobs.cli.options import MethodChoice

    return recipe_of({"method": MethodChoice(name, options)})


def test_recipes_are_found_by_the_preset_or_by_its_method(tmp_path: Path) -> None:
    own = tmp_path / "my_maple.yaml"
    own.write_text("method: maple\ndepth: 2\n", encoding="utf-8")
    assert recipe(str(own)) == "maple" and recipe("tip_adapter_f") == "tip_adapter"
    assert recipe("tip_adapter", fine_tune=True) == "tip_adapter" and recipe("clip_lora") == recipe("bitfit") == "lora"
    assert recipe("prograd") == recipe("clip_adapter") == "coop" and recipe("linear_probe") == "linear_probe"


def test_published_recipes_of_caches_and_probes() -> None:
    for name, expected in (
        ("linear_probe", {"cache_views": 20, "warmup_epochs": 1, "warmup_lr": 1e-5, "lr": 0.1, "weight_decay": 0.0}),
        ("tip_adapter", {"augment": "crop_half_flip", "optimizer": "adamw", "lr": 1e-3}),
        ("taskres", {"optimizer": "adam", "lr": 2e-3}),
    ):
        settings = fit.resolve([("", {"data": {"name": "world/open/objects"}, "method": {"name": name}})])
        assert {key: settings[key] for key in expected} == expected


def test_alpha_and_beta_that_are_given_stay(backbone: str, photos: str, tmp_path: Path) -> None:
    short = SHORT | {"epochs": 1, "shots": 2}
    given = {"name": "tip_adapter", "alpha": 1.17, "beta": 1.0}
    both = fit(data=photos, backbone=backbone, method=given, out=str(tmp_path / "both"), **short)
    assert both["chosen"] == {} and (both["method"]["alpha"], both["method"]["beta"]) == (1.17, 1.0)
    one = fit(
        data=photos, backbone=backbone, method={"name": "tip_adapter", "beta": 5.5}, out=str(tmp_path / "one"), **short
    )
    assert one["method"]["beta"] == 5.5 and one["chosen"]["settings"]["alpha"] == one["method"]["alpha"]


def test_names_join_between_files_and_notes_tell_what_a_model_cannot_know(photos: str, tmp_path: Path, capsys) -> None:
    """Folders called with underscores and in two spellings, named by the reference CLIP, which knows the drawn world alone."""
    data = tmp_path / "photos"
    for name, colour in (("Blue_ball", "blue"), ("Okapi", "red"), ("okapi", "green")):
        for split in ("train", "test"):
            shutil.copytree(Path(photos) / split / colour, data / split / name)
    out = str(tmp_path / "run")
    short = {"shots": 2, "cache_views": 0, "trainer": {"accelerator": "cpu"}}
    results = fit(data=str(data), method="zero_shot", out=out, **short)
    assert set(results["per_class"]) == {"Blue_ball", "Okapi", "okapi"}
    assert results["zero_shot_accuracy"] == results["accuracy"]
    notes = " ".join(results["notes"])
    assert "no model can tell them apart: Okapi, okapi" in notes
    assert "the reference CLIP knows the words of the drawn world alone, and not Okapi, ball, okapi" in notes
    assert "no model can tell them apart" in capsys.readouterr().err
    rows = list(csv.DictReader((tmp_path / "run/predictions.csv").open(encoding="utf-8")))
    assert {row["true_class"] for row in rows} == {"Blue_ball", "Okapi", "okapi"}
    picture = str(data / "test" / "Okapi" / "0.png")
    assert main(["predict", picture, "--run", out]) == 0
    assert {row["class"] for row in csv.DictReader(io.StringIO(capsys.readouterr().out))} == set(results["per_class"])
    export(run=out, out=str(tmp_path / "plain"), what=["weights"])
    assert json.loads((tmp_path / "plain/classes.json").read_text(encoding="utf-8"))["class_names"] == list(
        results["per_class"]
    )
    assert report(out, None, "test", "trained", cache=False, quiet=True)["per_class"] == results["per_class"]
    assert main(["predict", picture, "--run", out, "--classes", "zebra,okapi"]) == 2
    assert "separate several by spaces, --classes zebra okapi." in capsys.readouterr().err
    assert main(["predict", picture, "--run", out, "--classes", "cat"]) == 2
    assert 'with "cat" alone every picture is one' in capsys.readouterr().err
    assert main(["predict", picture, "--run", out, "--classes", "cat", "cat"]) == 2
    assert 'class name "cat" is there twice' in capsys.readouterr().err
