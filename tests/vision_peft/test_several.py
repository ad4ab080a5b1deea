"""Several data sets in one run: batches of one each, a head each, the method told whose turn it is, results and predictions by
data set."""

import contextlib
import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft_data import DataError, open_data
from peft_data.batches import Batch, Batches
from peft_data.cache import DecodedPictures
from peft_data.several import one_at_a_time

from peft_core import adapt
from peft_core.errors import PeftError
from tests.parity.test_official import vit
from vision_peft.commands import main
from vision_peft.tasks.several import Several

NAMES = ("a: x", "a: y", "b: u", "b: v", "b: w")


def test_a_step_is_of_one_data_set_drawn_by_its_size_and_temperature() -> None:
    labels = torch.tensor([0, 1] * 20 + [2, 3, 4] * 3)
    for temperature in (1.0, 10.0):
        draw = one_at_a_time(labels, (2, 3), temperature, seed=3)
        owners = torch.cat([(labels[draw(epoch, 8)].view(-1, 8) > 1) for epoch in range(200)])
        assert (owners.all(1) | ~owners.any(1)).all() and len(owners) == 200 * 7
        small = 9 ** (1 / temperature) / (9 ** (1 / temperature) + 40 ** (1 / temperature))
        assert owners[:, 0].double().mean().item() == pytest.approx(small, abs=0.04)
    assert draw(5, 8).equal(one_at_a_time(labels, (2, 3), 10.0, seed=3)(5, 8)) and not draw(5, 8).equal(draw(6, 8))
    assert set(draw(0, 8).tolist()) <= set(range(49))


def test_processes_share_a_step_of_one_data_set() -> None:
    labels = torch.tensor([0, 1, 2, 3] * 5)
    pictures = DecodedPictures(torch.zeros(20, 3, 2, 2, dtype=torch.uint8), labels, tuple(map(str, range(20))), ())
    found = []
    for rank in range(2):
        batches = Batches(pictures, 3, seed=1, rank=rank, world_size=2)
        batches.draw = one_at_a_time(labels, (2, 2), 1.0, 1)
        found.append(list(batches))
        assert len(found[-1]) == len(batches) == 4
    for one, other in zip(*found, strict=True):
        assert len({int(label) // 2 for label in (*one.labels, *other.labels)}) == 1


def test_a_picture_sees_the_classes_of_its_own_data_set() -> None:
    task = Several(NAMES, (("a", 2), ("b", 3)), smoothing=0.1)
    outputs = torch.tensor([[0.0, 1.0, 9.0, 8.0, 7.0], [2.0, 1.0, 9.0, 8.0, 7.0], [9.0, 9.0, 0.0, 1.0, 3.0]])
    labels = torch.tensor([1, 0, 4])
    model = adapt(vit(), "hyperformer", tasks=("a", "b"), reduction=8)
    batch = Batch(torch.zeros(3, 3, 8, 8), labels, torch.arange(3))
    meter, told = task.meter(), []
    for part in task.shares(model, batch):
        told.append(int(model.peft.hyperformer.shared_hypernetwork.value.chosen))
        meter.update(outputs[part.indices], part)
    scores = meter.scores()
    assert told == [0, 1] and scores.predicted.tolist() == [1, 0, 4]
    assert task.figures(scores)["per_data"] == {"a": 1.0, "b": 1.0} and scores.accuracy == 1
    wanted = torch.nn.functional.cross_entropy(outputs[:2, :2], labels[:2], label_smoothing=0.1)
    assert torch.equal(task.loss(outputs[:2], labels[:2]), wanted)
    assert eval(task.line("y"), {"names": NAMES, "y": outputs[:1]}) == {"a": "a: y", "b": "b: u"}
    (chosen,) = task.choose("b", model).predictions(outputs[:1])
    assert chosen.class_name == "u" and int(model.peft.hyperformer.shared_hypernetwork.value.chosen) == 1
    with pytest.raises(PeftError, match='no data set "c".*it has: a, b'):
        task.choose("c", model)
    with pytest.raises(PeftError, match="which by --task"):
        next(task.predictions(outputs))


def test_data_that_cannot_stand_together_are_told(small_data: str) -> None:
    for name, words in (
        ("several/digits", "two at least"), ("several/digits+digits", "each once"), ("several/digits+nothing", "no data set"),
        ("several/digits+world_motion/direction", "takes data sets of pictures|no data set"),
    ):  # fmt: skip
        with pytest.raises(DataError, match=words):
            open_data(name)
    with pytest.raises(DataError, match="leave the root /tmp out"):
        open_data(f"several/digits+{small_data}", root="/tmp")
    with pytest.raises(DataError, match="1 or more"):
        open_data(f"several/digits+{small_data}", temperature=0.5)


def test_a_run_of_several_data_sets(small_data: str, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    run, data = tmp_path / "run", f"several/digits+{small_data}"
    line = ["fit", "--data", data, "--method", "hyperformer", "--method.reduction", "16", "--out", str(run)]
    assert main([*line, "--epochs", "1", "--trainer.max_steps", "6", "--batch_size", "16"]) == 0
    results = json.loads((run / "results.json").read_text(encoding="utf-8"))
    assert set(results["per_data"]) == {"digits", "digits3"} and results["task"] == "several"
    card = json.loads((run / "adapter" / "adapter.json").read_text(encoding="utf-8"))
    assert card["adaptations"][0]["settings"]["tasks"] == ["digits", "digits3"]
    capsys.readouterr()
    picture = str(next((Path(small_data) / "test" / "one").iterdir()))
    found: dict[str, Any] = {}
    for task in ("digits", "digits3"):
        assert main(["predict", picture, "--run", str(run), "--task", task, "--top", "20"]) == 0
        found[task] = [row["class"] for row in csv.DictReader(io.StringIO(capsys.readouterr().out))]
    with contextlib.redirect_stdout(io.StringIO()) as text:  # as a notebook does: nothing is written to a file
        assert main(["predict", picture, "--run", str(run), "--task", "digits"]) == 0
    assert text.getvalue().startswith("path,class,probability\n") and "pictures in" not in text.getvalue()
    assert sorted(found["digits3"]) == ["one", "two", "zero"] and len(found["digits"]) == 10
    assert main(["predict", picture, "--run", str(run)]) == 2
    said = capsys.readouterr()
    assert "--task (digits, digits3)" in said.err and not said.out
    assert main(["export", "--run", str(run), "--out", str(tmp_path / "m.onnx")]) == 2
    assert "use `predict --task`" in capsys.readouterr().err
    assert main(["test", "--run", str(run)]) == 0
    said = capsys.readouterr().out
    assert f"accuracy {results['accuracy']:.4f} over all (digits {results['per_data']['digits']:.4f}" in said
