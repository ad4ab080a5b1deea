"""Runs of other tasks than classes: several labels, a number, from data to predictions."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from peft_core import PeftError, load_run
from peft_core.jobs.reports.labels import LabelScores, best_thresholds, scores_of
from tests.vision_peft.conftest import SMALL
from vision_peft.commands import main
from vision_peft.fit import fit
from vision_peft.tasks.base import Task
from vision_peft.tasks.multi_label import Labels
from vision_peft.tasks.regression import Numbers, NumberScores

COLOURS = ("red", "green", "blue")


@pytest.fixture(scope="module")
def coloured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty squares in any of three colours: labels.csv says which, number.csv how red they are."""
    folder, rng = tmp_path_factory.mktemp("coloured"), np.random.default_rng(0)
    has = (rng.random((40, 3)) < 0.5).astype(int)
    for row, colours in enumerate(has):
        pixels = np.tile((colours * 200 + 20).astype(np.uint8), (40, 40, 1))
        pixels[::2] += rng.integers(0, 30, (20, 40, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{row}.png")
    with open(folder / "labels.csv", "w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([["path", *COLOURS], *([f"{row}.png", *each] for row, each in enumerate(has))])
    numbers = [[f"{row}.png", 100 + 50 * each[0] + 5 * each[1]] for row, each in enumerate(has)]
    with open(folder / "number.csv", "w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([["path", "target"], *numbers])
    return folder


@pytest.fixture(scope="module")
def runs(coloured: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    found = {name: tmp_path_factory.mktemp("runs") / name for name in ("labels", "number")}
    settings = SMALL | {
        "method": "bitfit",
        "lr": 0.02,
        "augment": "none",
        "trainer": {"max_epochs": 8, "accelerator": "cpu"},
    }
    fit(data=str(coloured / "labels.csv"), task="multi_label", out=str(found["labels"]), **settings)
    fit(data=str(coloured / "number.csv"), task="regression", out=str(found["number"]), **settings)
    return found


def test_labels_are_learnt_and_their_thresholds_kept(runs: dict[str, Path], coloured: Path, capsys) -> None:
    results = json.loads((runs["labels"] / "results.json").read_text(encoding="utf-8"))
    assert results["task"] == "multi_label" and results["mAP"] > 0.8 and set(results["per_label"]) == set(COLOURS)
    assert results["pictures"] == {"train": 24, "test": 8}  # val chooses thresholds and is not trained on
    run = load_run(runs["labels"])
    assert run.task.thresholds.tolist() == pytest.approx(
        [each["threshold"] for each in results["per_label"].values()], abs=1e-5
    )
    (said,) = run.predict(coloured / "0.png")
    reach = {name for name, p, t in zip(COLOURS, said.probabilities, run.task.thresholds, strict=True) if p >= t}
    assert set(said.labels) == reach
    assert main(["predict", "--run", str(runs["labels"]), str(coloured / "0.png"), "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert [each["label"] for each in row["labels"]] == list(said.labels)
    assert main(["predict", "--run", str(runs["labels"]), str(coloured / "0.png"), "--top", "3"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 4
    assert main(["test", "--run", str(runs["labels"])]) == 0
    assert f"mAP {results['mAP']:.4f}, mean F1 {results['f1']:.4f} on 8 pictures" in capsys.readouterr().out


def test_a_number_is_learnt_in_its_own_unit(runs: dict[str, Path], coloured: Path, capsys) -> None:
    results = json.loads((runs["number"] / "results.json").read_text(encoding="utf-8"))
    assert results["r2"] > 0.5 and results["mae"] < 0.6 * results["mae_of_the_mean"]
    run = load_run(runs["number"])
    (value,) = run.predict(coloured / "0.png")
    assert 60 < value < 200
    raw = run.model(run.transform(coloured / "0.png")[None]).item()
    assert value == pytest.approx(raw * run.card["target_std"] + run.card["target_mean"], rel=1e-5)
    assert main(["predict", "--run", str(runs["number"]), str(coloured / "0.png"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["target"] == pytest.approx(value, rel=1e-4)


def test_legacy_needs_a_figure_to_choose_by(coloured: Path, tmp_path: Path) -> None:
    rows = [
        ["path", "target", "split"],
        *([f"{row}.png", row % 7 if row < 36 else 3, "train" if row < 36 else "test"] for row in range(40)),
    ]
    with open(coloured / "alike.csv", "w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows(rows)
    settings = SMALL | {"method": "linear", "augment": "none", "trainer": {"max_epochs": 1, "accelerator": "cpu"}}
    with pytest.raises(PeftError, match="best r2, and these test pictures give none"):
        fit(
            data=str(coloured / "alike.csv"),
            task="regression",
            protocol="legacy",
            out=str(tmp_path / "run"),
            **settings,
        )


@pytest.mark.slow
def test_files_of_weights_say_how_their_outputs_are_read(runs: dict[str, Path], tmp_path: Path, capsys) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    assert main(["merge", "--run", str(runs["labels"]), "--out", str(tmp_path / "m.safetensors")]) == 0
    assert "[0].sigmoid(), [0." in capsys.readouterr().out
    run, x = load_run(runs["number"]), torch.rand(3, 3, 40, 40)
    assert main(["export", "--run", str(runs["number"]), "--out", str(tmp_path / "n.onnx")]) == 0
    session = onnxruntime.InferenceSession(str(tmp_path / "n.onnx"))
    (found,) = session.run(["value"], {"image": x.numpy()})
    normal = (x - torch.tensor(run.mean)[:, None, None]) / torch.tensor(run.std)[:, None, None]
    torch.testing.assert_close(torch.tensor(found), run.task.finished(run.model(normal)).detach(), rtol=1e-3, atol=1e-2)


def test_runs_are_compared_by_the_figure_of_their_task(runs: dict[str, Path], capsys) -> None:
    from vision_peft.compare import compare

    both = compare([str(runs["labels"]), str(runs["number"])])
    assert "| method | mAP |" in both and "| method | r2 |" in both


def test_what_is_for_classes_alone_says_so(runs: dict[str, Path], coloured: Path, capsys, tmp_path: Path) -> None:
    data = ["--data", str(coloured / "labels.csv")]
    for words, sentence in {
        ("laplace", "--run", str(runs["labels"])): "laplace takes runs of classes",
        ("bit_delta", "--run", str(runs["labels"]), "--out", str(tmp_path / "b")): "bit_delta takes runs of classes",
        ("fit", *data, "--task", "regression"): "has no column 'target'",
        ("fit", *data): "has no column 'label'",
        (
            "fit",
            *data,
            "--task",
            "regression",
            "--data.target_column",
            "red",
            "--label_smoothing",
            "0.1",
        ): "leave it out",
        ("fit", "--data", "digits", "--task", "multi_label"): "is a data set of the task classify",
        ("fit", *data, "--task", "multi_label", "--method", "ilm_vp"): "--task multi_label has none",
        (
            "sweep",
            "--out",
            str(tmp_path / "s"),
            *data,
            "--methods",
            "lora",
            "--set",
            "task=multi_label",
        ): "a sweep compares accuracies",
    }.items():
        assert main(list(words)) == 2, words
        assert sentence in capsys.readouterr().err, words


# ---- figures, by hand ------------------------------------------------------------------------------------------------


def test_average_precision_and_thresholds_by_hand() -> None:
    outputs = torch.tensor([[2.0, 0.1], [1.0, 0.2], [0.0, 0.3], [-1.0, 0.4]])
    labels = torch.tensor([[1, 0], [0, 0], [1, 0], [-1, -1]])
    scores = scores_of(outputs, labels)
    assert scores.precisions[0] == pytest.approx((1 + 2 / 3) / 2) and scores.precisions[1].isnan()
    assert scores.value == pytest.approx(5 / 6)
    thresholds = best_thresholds(scores)
    assert thresholds[1] == 0.5
    assert thresholds[0] == pytest.approx(outputs[2, 0].sigmoid() / 2)  # all three known ones: F1 = 4/5
    assert scores.f1(thresholds)[0] == pytest.approx(0.8)


def test_pictures_without_any_label_are_told_and_no_figure_is_no_number() -> None:
    task, scores = Labels("ab"), scores_of(torch.zeros(2, 2), torch.zeros(2, 2))
    results = json.loads(json.dumps(task.figures(scores), allow_nan=False))
    assert results == {"mAP": None} and task.words(results) == "no scored picture has a label"
    assert task.remarks(scores, ()) == ["no scored picture has a label, so that there is no mAP"]


def test_thresholds_are_the_best_of_all() -> None:
    torch.manual_seed(0)
    scores = LabelScores((torch.rand(50, 3) * 20).round() / 20, (torch.rand(50, 3) < 0.4).long(), torch.zeros(3))
    best = scores.f1(best_thresholds(scores))
    every = torch.stack([scores.f1(torch.full((3,), value)) for value in torch.linspace(0, 1.01, 203).tolist()])
    torch.testing.assert_close(best, every.amax(0))


def test_losses_by_hand() -> None:
    task: Task = Labels("ab", smoothing=0.2)
    outputs = torch.tensor([[1.0, -2.0]])
    loss = -(0.9 * torch.tensor(1.0).sigmoid().log() + 0.1 * torch.tensor(-1.0).sigmoid().log())
    torch.testing.assert_close(task.loss(outputs, torch.tensor([[1, -1]], dtype=torch.int8)), loss)
    number = Numbers(["y"], 10.0, 4.0)
    assert number.loss(torch.tensor([[0.5]]), torch.tensor([14.0])).item() == pytest.approx(0.25)
    scores = NumberScores(torch.tensor([1.0, 2.0]), torch.tensor([1.0, 4.0]))
    assert scores.value == pytest.approx(1 - 4 / 4.5) and scores.error == 1
