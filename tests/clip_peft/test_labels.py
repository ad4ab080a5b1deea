"""Pictures with any number of labels: pairs of prompts at a picture's places, mAP, thresholds, other names."""

import csv
import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from peft_data import open_data
from PIL import Image

from clip_peft import OpenVocabulary
from clip_peft.commands import main
from clip_peft.export import export
from clip_peft.fit import fit
from clip_peft.regions import regions
from clip_peft.training.few_shot import of_classes
from clip_peft.use import test as score
from peft_core import PeftError, load_run
from tests.clip_peft.models import NAMES, clip, close, coca, pictures, residual_clip, siglip, tokenizer

COLOURS = ("red", "green", "blue", "grey")
SHORT = {"epochs": 10, "batch_size": 8, "lr": 0.01, "augment": "none", "trainer": {"accelerator": "cpu"}}


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty pictures of four squares, each of which has its colour or is black; a few cells say nothing."""
    folder, rng = tmp_path_factory.mktemp("squares"), np.random.default_rng(0)
    has = (rng.random((40, 4)) < 0.5).astype(int)
    ink = np.array([[220, 30, 30], [30, 200, 40], [40, 50, 220], [150, 150, 150]])
    for row, own in enumerate(has):
        pixels = np.zeros((32, 32, 3), dtype=np.uint8)
        for place, (there, colour) in enumerate(zip(own, ink, strict=True)):
            pixels[16 * (place // 2) :, 16 * (place % 2) :][:16, :16] = there * colour
        Image.fromarray(pixels + rng.integers(0, 20, pixels.shape, dtype=np.uint8)).save(folder / f"{row}.png")
    splits = ["train"] * 20 + ["val"] * 8 + ["test"] * 12
    with open(folder / "labels.csv", "w", encoding="utf-8", newline="") as file:
        rows = [
            [f"{row}.png", *("" if row == 3 and place == 1 else value for place, value in enumerate(own)), split]
            for row, (own, split) in enumerate(zip(has.tolist(), splits, strict=True))
        ]
        csv.writer(file).writerows([["path", *COLOURS, "split"], *rows])
    return folder / "labels.csv"


@pytest.fixture(scope="module")
def run(table: Path, backbone: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "dual"
    method = {"name": "dual_coop", "context": 4, "class_specific": True}
    fit(data=str(table), backbone=backbone, method=method, out=str(out), **SHORT)
    return out


def test_labels_are_learnt_and_their_thresholds_kept(run: Path, capsys: pytest.CaptureFixture) -> None:
    results = json.loads((run / "results.json").read_text(encoding="utf-8"))
    assert results["task"] == "multi_label" and set(results["per_label"]) == set(COLOURS)
    assert results["mAP"] > max(0.75, results["zero_shot_mAP"]) and results["cached_views"] == 0
    assert results["pictures"] == {"train": 20, "scored": 12} and results["parameters"]["trainable"] == 2 * 4 * 4 * 32
    limits = [each["threshold"] for each in results["per_label"].values()]
    loaded = load_run(run)
    assert loaded.task.thresholds.tolist() == pytest.approx(limits, abs=1e-5) and len(set(limits)) > 1
    again = score(run=str(run))
    assert again["mAP"] == pytest.approx(results["mAP"], abs=1e-6) and again["f1"] == pytest.approx(
        results["f1"], abs=1e-6
    )
    assert f"mAP {results['mAP']:.4f}, mean F1" in capsys.readouterr().out
    looked = list(csv.DictReader(io.StringIO((run / "metrics.csv").read_text(encoding="utf-8"))))
    assert float(looked[-1]["mAP"] or 0) > 0.7
    report = (run / "report.html").read_text(encoding="utf-8")
    assert "Each label" in report and "zero-shot mAP" in report
    assert (run / "predictions.csv").read_text(encoding="utf-8").count("\n") == 1 + 12


def test_predict_tells_what_reaches_its_threshold(run: Path, table: Path, capsys: pytest.CaptureFixture) -> None:
    loaded, picture = load_run(run), str(table.parent / "0.png")
    (found,) = loaded.predict(picture)
    said = [n for n, p, t in zip(COLOURS, found.probabilities, loaded.task.thresholds, strict=True) if p >= t]
    assert sorted(found.labels) == sorted(said)
    assert main(["predict", "--run", str(run), picture]) == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [row["label"] for row in rows] == (list(found.labels) or [""])
    assert main(["predict", "--run", str(run), picture, "--top", "3", "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)[0]["labels"]) == 3
    assert main(["predict", "--run", str(run), picture, "--classes", "blue"]) == 0  # one label may stand alone
    (row,) = csv.DictReader(io.StringIO(capsys.readouterr().out))
    blue = COLOURS.index("blue")
    assert (row["label"] == "blue") == (found.probabilities[blue] >= loaded.task.thresholds[blue])
    assert main(["predict", "--run", str(run), picture, "--classes", "blue", "sea"]) == 2
    assert "dual_coop cannot name other classes, because each label has learnt a pair" in capsys.readouterr().err


def test_labels_that_were_not_trained(
    table: Path, backbone: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    method = {"name": "dual_coop", "context": 2}
    short = SHORT | {"epochs": 1}
    fit(data=str(table), backbone=backbone, method=method, classes="base", out=str(tmp_path / "run"), **short)
    found = score(run=str(tmp_path / "run"), classes="new")
    assert list(found["per_label"]) == ["blue", "grey"] and "(new classes, 2 names)" in capsys.readouterr().out
    base = of_classes(open_data(str(table), task="multi_label"), "base")
    assert base.class_names == ("red", "green") and base.train.labels.shape == (20, 2)


@pytest.mark.slow
def test_onnx_gives_each_label_s_probability(run: Path, tmp_path: Path) -> None:
    import onnxruntime

    export(run=str(run), out=str(tmp_path / "out"), what=["onnx"])
    loaded = load_run(run)
    pixels = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    session = onnxruntime.InferenceSession(tmp_path / "out/model.onnx")
    (ours,) = session.run(None, {"image": (pixels.float() / 255).numpy()})
    expected = torch.stack([each.probabilities for each in loaded.predict(pixels)])
    torch.testing.assert_close(torch.from_numpy(ours), expected, atol=2e-5, rtol=1e-3)
    about = session.get_modelmeta().custom_metadata_map
    assert json.loads(about["task"]) == "multi_label" and len(json.loads(about["thresholds"])) == 4


def test_places_of_a_vit_keep_their_own_values() -> None:
    """The last attention mixes nothing, all before it is the model's own."""
    model = clip()
    x, visual = pictures(), model.visual
    with torch.no_grad():
        found = regions(visual, x)
        tokens = visual._embeds(x)
        for block in visual.transformer.resblocks[:-1]:
            tokens = block(tokens)
        last = visual.transformer.resblocks[-1]
        alone = last(tokens.flatten(0, 1)[:, None]).view_as(tokens)  # each token is a sequence of its own
        close(found, visual.ln_post(alone) @ visual.proj)
        assert found.shape == (4, 17, 16) and torch.equal(visual(x), clip().visual(x))


def test_one_place_alone_decides_where_it_is_likest() -> None:
    model = residual_clip()
    whole = OpenVocabulary(model, "dual_coop", NAMES, tokenizer(), context=2, sharpness=1e6)
    x = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        places, (there, away) = F.normalize(whole.encode(x), dim=-1), whole.class_weights()
        cosines = places @ there.T
        best = cosines.argmax(1, keepdim=True)
        expected = (cosines - places @ away.T).gather(1, best)[:, 0] * model.logit_scale.exp()
        assert places.shape == (2, 5, 16)  # of twice the size that the tower is made for
        torch.testing.assert_close(whole(x), expected, atol=1e-3, rtol=1e-3)


def test_unknown_labels_say_nothing() -> None:
    whole = OpenVocabulary(clip(), "dual_coop", NAMES, tokenizer(), context=2)
    labels = torch.zeros(4, 7, dtype=torch.int8)
    labels[0, 0] = 1
    known = whole.loss(pictures(), labels)
    labels[:, 1:] = -1
    fewer = whole.loss(pictures(), labels)
    assert 0 < fewer < known
    labels[:] = -1
    assert whole.loss(pictures(), labels) == 0


def test_mistakes(table: Path, photos: str, backbone: str, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    line = ["fit", "--backbone", backbone, "--method", "dual_coop", "--out", str(tmp_path / "x")]
    for words, message in {
        ("--data", photos): "is no data set of a known format: give a .csv file with the",
        ("--data", str(table), "--shots", "4"): "have any number of labels, and no shots of one: give --shots 0",
        ("--data", str(table), "--hold_out", "0.2"): "so none are held out of a class's",
        (
            "--data",
            str(table),
            "--method.class_specific",
            "true",
            "--method.init",
            "a",
        ): "so leave init and negative_init out",
    }.items():
        assert main([*line, *words]) == 2
        assert message in capsys.readouterr().err
    assert not (tmp_path / "x").exists()
    for model in (siglip, coca):
        with pytest.raises(PeftError, match="dual_coop looks at the places of a picture, which the image tower"):
            OpenVocabulary(model(), "dual_coop", NAMES, tokenizer())
