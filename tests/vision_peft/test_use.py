"""What is done with a finished run: predict, test, merge, export, load_run."""

import csv
import io
import json
import shutil
from pathlib import Path
from typing import Any

import PIL.Image
import pytest
import safetensors
import timm
import torch
from PIL import Image
from safetensors.torch import load_file

from peft_core import PeftError, load_run
from peft_core.attach import is_inserted
from tests.vision_peft.conftest import SMALL
from vision_peft.commands import main
from vision_peft.fit import fit
from vision_peft.reference import CARD


def test_predict_prints_csv(short_run: Path, pictures: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(["predict", "--run", str(short_run), str(pictures / "zero.png"), str(pictures / "more")]) == 0
    rows = list(csv.reader(io.StringIO(capsys.readouterr().out)))
    assert rows[0] == ["path", "class", "probability"]
    names = ("zero.png", "more/one.png", "more/two.png")
    assert [row[0] for row in rows[1:]] == [str(pictures / name) for name in names]
    assert all(row[1] in "0123456789" and 0.1 <= float(row[2]) <= 1 for row in rows[1:])


def test_predict_goes_on_after_an_unreadable_picture(
    short_run: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    (tmp_path / "bad.png").write_text("no picture")
    (tmp_path / "note.txt").write_text("no picture either, and nobody says it is")
    Image.open(pictures / "zero.png").save(tmp_path / "good.png")
    assert main(["predict", str(tmp_path), "--run", str(short_run)]) == 2
    said = capsys.readouterr()
    assert len(said.out.splitlines()) == 2 and "good.png" in said.out
    assert said.err.splitlines() == [f"vision_peft: {tmp_path}/bad.png is no picture that can be read (cannot identify "
                                     f"image file '{tmp_path}/bad.png')."]  # fmt: skip


def test_runs_of_one_backbone_predict_together(
    short_run: Path, small_run: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    from vision_peft.together import open_runs

    table = tmp_path / "predictions.csv"
    assert main(["predict", str(pictures), "--runs", str(short_run), str(small_run), "--out", str(table)]) == 0
    rows = list(csv.reader(table.read_text(encoding="utf-8").splitlines()))
    assert rows[0] == ["path", short_run.name, small_run.name]
    several = open_runs([short_run, small_run]).predict([row[0] for row in rows[1:]])
    for place, (name, path) in enumerate(((short_run.name, short_run), (small_run.name, small_run)), 1):
        alone = load_run(path).predict([row[0] for row in rows[1:]])
        assert [one.class_name for one in alone] == [row[place] for row in rows[1:]]
        for one, other in zip(alone, several[name], strict=True):
            assert torch.allclose(one.probabilities, other.probabilities, atol=1e-5)
    capsys.readouterr()
    other = tmp_path / "other"
    shutil.copytree(short_run, other)
    config = (other / "config.yaml").read_text(encoding="utf-8")
    (other / "config.yaml").write_text(
        config.replace("backbone: reference", "backbone: vit_tiny_patch16_224"), encoding="utf-8"
    )
    for words, sentence in {
        ("--runs", str(short_run), str(other)): f"{other} backbone vit_tiny_patch16_224; predict with each alone.",
        ("--runs", str(short_run), str(short_run)): "names one run folder twice",
        ("--top", "2", "--runs", str(short_run), str(small_run)): "leave --top out",
        ("--run", str(short_run), "--runs", str(small_run)): "or --runs, several on one backbone",
    }.items():
        assert main(["predict", str(pictures), *words]) == 2
        assert sentence in capsys.readouterr().err


def test_load_run(short_run: Path, pictures: Path) -> None:
    run = load_run(short_run)
    assert run.class_names == tuple("0123456789") and not run.model.training
    paths = [pictures / "zero.png", str(pictures / "more" / "one.png")]
    by_path = run.predict(paths)
    by_image = run.predict([Image.open(path) for path in paths])
    by_bytes = run.predict(torch.stack([run.pixels(path) for path in paths]))
    for one, other, third in zip(by_path, by_image, by_bytes, strict=True):
        assert one[:2] == other[:2] == third[:2]
        assert one.probability == float(one.probabilities.max())
        assert run.class_names[int(one.probabilities.argmax())] == one.class_name
    (alone,) = run.predict(paths[0])
    assert alone.probability == pytest.approx(by_path[0].probability, abs=1e-5)
    logits = run.model(run.transform(paths[0])[None])
    assert torch.allclose(logits.softmax(-1)[0], alone.probabilities, atol=1e-6)
    with pytest.raises(PeftError, match="there is no picture"):
        run.predict("nowhere.png")


def test_load_run_predicts_as_the_run_did(short_run: Path) -> None:
    from peft_data import open_data

    run, held_out = load_run(short_run), open_data("digits").test
    rows = list(csv.DictReader((short_run / "predictions.csv").open()))[:50]
    for row, prediction in zip(rows, run.predict(held_out.items[:50]), strict=True):
        assert prediction.class_name == row["class"]
        assert prediction.probability == pytest.approx(float(row["probability"]), abs=1e-4)


def test_test_scores_as_fit_did(short_run: Path, capsys: pytest.CaptureFixture) -> None:
    from vision_peft.use import test

    results = json.loads((short_run / "results.json").read_text())
    assert test(run=str(short_run))["accuracy"] == results["accuracy"]
    assert test(run=str(short_run), split="val")["pictures"] == 200
    assert f"accuracy {results['accuracy']:.4f} on 797 pictures of digits test" in capsys.readouterr().out
    with pytest.raises(PeftError, match="has other classes"):
        test(run=str(short_run), data="world/count")


def test_merged_file_is_plain_timm(
    short_run: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "merged.safetensors"
    assert main(["merge", "--run", str(short_run), "--out", str(target)]) == 0
    model = timm.create_model(**CARD["timm"], num_classes=10, checkpoint_path=str(target)).eval()
    run = load_run(short_run)
    pixels = run.transform(pictures / "zero.png")[None]
    assert torch.allclose(model(pixels), run.model(pixels), atol=1e-5)
    assert set(load_file(target)) == set(model.state_dict())
    printed = [line.strip() for line in capsys.readouterr().out.splitlines() if line.startswith("  ")]
    known = {"timm": timm, "json": json, "safetensors": safetensors, "PIL": PIL}
    exec("\n".join(printed[:-1]), known)
    with PIL.Image.open(pictures / "zero.png") as picture:
        seen = known["transform"](picture.convert("RGB"))
    assert torch.allclose(seen, pixels[0], atol=1e-6)
    monkeypatch.chdir(pictures)
    assert eval(printed[-1].replace("picture.png", "zero.png"), known) == run.predict("zero.png")[0].class_name


def test_predictions_as_json(short_run: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    line = ["predict", str(pictures / "zero.png"), "--run", str(short_run), "--top", "3", "--json"]
    assert main(line) == 0
    (found,) = json.loads(capsys.readouterr().out)
    assert found["path"].endswith("zero.png") and len(found["classes"]) == 3
    assert found["classes"][0]["probability"] >= found["classes"][1]["probability"]
    assert main([*line, "--out", str(tmp_path / "p.json")]) == 0
    assert json.loads((tmp_path / "p.json").read_text(encoding="utf-8")) == [found]
    assert main([*line, "--out", str(tmp_path / "p.csv")]) == 2


def test_what_cannot_be_merged_says_why_and_is_exported(
    small_data: str, tiny_backbone: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    fit(data=small_data, backbone=tiny_backbone, out=str(tmp_path / "run"), method="vpt", **SMALL)
    assert main(["merge", "--run", str(tmp_path / "run"), "--out", str(tmp_path / "m.safetensors")]) == 2
    assert "cannot be merged: prompt tokens" in capsys.readouterr().err
    assert not (tmp_path / "m.safetensors").exists()
    assert main(["export", "--run", str(tmp_path / "run"), "--out", str(tmp_path / "m.onnx")]) == 0
    assert same_probabilities(tmp_path / "run", tmp_path / "m.onnx")


def test_what_is_exported_is_merged(short_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert main(["export", "--run", str(short_run), "--format", "stock", "--out", f"{tmp_path}/m.safetensors"]) == 0
    assert (tmp_path / "m.safetensors").is_file()
    written: list[Any] = []
    monkeypatch.setattr("vision_peft.use.write_onnx", lambda *given: written.append(given) or given[2])
    assert main(["export", "--run", str(short_run), "--out", str(tmp_path / "model.onnx")]) == 0
    (model, of, target, *_), run = written[0], load_run(short_run)
    assert target == tmp_path / "model.onnx" and of.class_names == run.class_names
    assert not any(is_inserted(key) for key in model.state_dict())
    images = torch.randint(0, 256, (2, 3, *run.fit.size), dtype=torch.uint8)
    seen = torch.stack([run.pixels(image) for image in images]) / 255
    wanted = torch.stack([prediction.probabilities for prediction in run.predict(images)])
    torch.testing.assert_close(model.eval()(seen), wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_onnx_of_a_merged_run(short_run: Path, tmp_path: Path) -> None:
    assert main(["export", "--run", str(short_run), "--out", str(tmp_path / "model.onnx")]) == 0
    assert same_probabilities(short_run, tmp_path / "model.onnx")


def same_probabilities(run_folder: Path, file: Path) -> bool:
    import onnxruntime

    run = load_run(run_folder)
    session = onnxruntime.InferenceSession(file)
    about = {key: json.loads(text) for key, text in session.get_modelmeta().custom_metadata_map.items()}
    assert about["class_names"] == list(run.class_names) and about["mean"] == pytest.approx(list(run.mean))
    images = torch.randint(0, 256, (3, 3, *run.fit.size), dtype=torch.uint8)
    for batch in (images, images[:1]):
        seen = torch.stack([run.pixels(image) for image in batch])  # as the run's own crop has them
        (found,) = session.run(None, {"image": (seen / 255).numpy()})
        wanted = torch.stack([prediction.probabilities for prediction in run.predict(batch)])
        assert torch.allclose(torch.from_numpy(found), wanted, atol=1e-5)
    return True


def test_export_without_onnx(
    short_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "onnxscript", None)
    assert main(["export", "--run", str(short_run), "--out", str(tmp_path / "model.onnx")]) == 2
    assert "pip install 'visual-peft[onnx]'" in capsys.readouterr().err


@pytest.mark.parametrize("what", ["methods", "data", "backbones", "recipes"])
def test_list(what: str, capsys: pytest.CaptureFixture) -> None:
    assert main(["list", what]) == 0
    lines = capsys.readouterr().out.splitlines()
    first = {line.split()[0] for line in lines if line}
    assert not first & {"t_lora", "xattn", "custom_diffusion"}  # for other models
    wanted = {
        "methods": {"lora", "vpt", "lora_noah", "vpt_deep"},
        "data": {"digits", "vtab/cifar100", "world/count"},
        "backbones": {"reference", "vit_base_patch16_224.augreg_in21k", "vit_base_patch16_224.orig_in21k"},
        "recipes": {"default", "vtab", "fgvc", "digits", "world"},
    }
    assert wanted[what] <= first and all(len(line.split()) > 2 for line in lines if line and not line.endswith(":"))


def test_the_page_predicts(short_run: Path, pictures: Path, tmp_path: Path) -> None:
    from peft_core.jobs.app.frame import Page
    from vision_peft.app import PART

    (tmp_path / "bad.png").write_text("no picture", encoding="utf-8")
    given = [str(pictures / "zero.png"), str(tmp_path / "bad.png"), str(pictures / "more/one.png")]
    shown, table = Page(PART, short_run.parent).use(short_run.name, given, 2)
    assert [path for path, _ in shown] == [given[0], given[2]] and shown[0][1].endswith(" %")
    assert [row[0] for row in table["data"]] == ["zero.png"] * 2 + ["one.png"] * 2 + [""]
    assert "bad.png is no picture" in table["data"][-1][1]
    with pytest.raises(PeftError, match="bad.png is no picture"):
        Page(PART, short_run.parent).use(short_run.name, given[1:2], 2)
