"""A distance a pixel: the loss and the figures by hand, and a run from maps to maps."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from peft_core import PeftError, load_run
from tests.vision_peft.conftest import SMALL
from vision_peft.commands import main
from vision_peft.dense.depth import Depth, figures_of
from vision_peft.fit import fit

NEAR, FAR = 2.0, 5.0


@pytest.fixture(scope="module")
def steps(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures half red, half blue; blue is farther, and of a corner nothing is known."""
    folder, rng = tmp_path_factory.mktemp("steps"), np.random.default_rng(0)
    for row in range(20):
        split = "train" if row < 14 else "test"
        cut = int(rng.integers(8, 40))
        pixels, depth = np.zeros((36, 48, 3), np.uint8) + 30, np.full((36, 48), 1000 * NEAR, np.uint16)
        pixels[:, :cut, 0], pixels[:, cut:, 2], depth[:, cut:] = 200, 220, 1000 * FAR
        depth[:9, :9] = 0
        for kind, image in (("images", pixels), ("depths", depth)):
            (folder / kind / split).mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(folder / kind / split / f"{row}.png")
    return folder


def test_a_run_from_maps_to_maps(steps: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    out, data = tmp_path / "run", {"name": str(steps), "scale": 1000}
    settings = SMALL | {"augment": "flip", "lr": 0.03, "batch_size": 7, "method": "linear"}
    settings["trainer"] = {"max_epochs": 30, "accelerator": "cpu"}
    fit(data=data, task="depth", dense={"size": 32}, out=str(out), **settings)
    results = json.loads((out / "results.json").read_text(encoding="utf-8"))
    assert results["delta1"] > 0.6 and results["rmse"] < 0.7 * results["rmse_of_the_mean"]
    report = (out / "report.html").read_text(encoding="utf-8")
    assert "test/14.png" in report and f"predict --run {out} --out predicted" in report
    assert (out / "predictions.csv").read_text(encoding="utf-8").startswith("path,delta1,delta2,delta3,abs_rel,rmse")
    capsys.readouterr()
    assert main(["predict", "--run", str(out), str(steps / "images" / "test"), "--out", str(tmp_path / "said")]) == 0
    told = capsys.readouterr()
    assert told.out.splitlines()[0] == "path,file" and "divided by 1000 is the depth" in told.err
    found = Image.open(tmp_path / "said" / "17.png")
    true = np.asarray(Image.open(steps / "depths" / "test" / "17.png"))
    assert found.mode == "I;16" and found.size == (48, 36)
    assert (np.abs(np.asarray(found) / true.clip(1) - 1) < 0.25)[true > 0].mean() > 0.6
    assert main(["test", "--run", str(out)]) == 0
    assert f"δ < 1.25 of {results['delta1']:.4f}, relative error" in capsys.readouterr().out
    (said,) = load_run(out).predict(steps / "images" / "test" / "17.png")
    assert said.shape == (1, 32, 32) and said.min() >= NEAR and said.max() <= FAR


def task(**more: float) -> Depth:
    return Depth(("depth",), {}, **dict(centre=0.5, spread=2.0, low=0.1, high=50.0, scale=1000.0) | more)


def test_the_loss_is_eigens() -> None:
    torch.manual_seed(0)
    outputs, labels = torch.randn(3, 1, 4, 5, dtype=torch.float64, requires_grad=True), torch.rand(3, 4, 5) * 9
    labels[0, :2], labels[2] = 0, 0
    found = task().loss(outputs, labels)
    want = 0.0
    for said, true in zip(outputs[:2, 0], labels, strict=False):
        rows = [(z - (math.log(y) - 0.5) / 2) for z, y in zip(said[true > 0], true[true > 0].tolist(), strict=True)]
        pairs = [((a - b) ** 2 + a**2 + b**2) / 2 for a in rows for b in rows]  # half of it is of pairs alone
        want += sum(pairs) / (2 * len(pairs)) / 2
    torch.testing.assert_close(found.double(), want, atol=1e-5, rtol=1e-5)
    (gradient,) = torch.autograd.grad(found, outputs)
    assert not gradient[2].any() and not gradient[0, :, :2].any() and gradient[1].all()
    assert task().loss(outputs, torch.zeros(3, 4, 5)) == 0


def test_figures_by_hand() -> None:
    said, true = torch.tensor([[[2.0, 3.0, 4.0, 9.0]]]), torch.tensor([[[2.0, 2.5, 8.0, 0.0]]])
    (found,) = figures_of(said, true, 2.0).tolist()
    rmse, of_two = math.sqrt((0.25 + 16) / 3), math.sqrt((0.25 + 36) / 3)
    assert found == pytest.approx([2 / 3, 2 / 3, 2 / 3, (0.2 + 0.5) / 3, rmse, of_two])
    assert figures_of(said, torch.zeros(1, 1, 4), 2.0).isnan().all()


def test_pictures_without_a_known_depth_do_not_count() -> None:
    from peft_data.batches import Batch

    meter, own = task().meter(), task()
    outputs = torch.zeros(2, 1, 1, 2)
    depth = math.exp(0.5)
    meter.update(outputs, Batch(torch.zeros(2), torch.tensor([[[0.0, 0.0]], [[depth, 9.0]]]), torch.tensor([4, 3])))
    scores = meter.scores()
    assert scores.value == pytest.approx(0.5) and sorted(scores.maps) == [3, 4]
    assert own.figures(scores)["rmse"] == pytest.approx((9 - depth) / math.sqrt(2), rel=1e-5)
    assert own.remarks(scores, [])[0].startswith("1 scored maps know no depth")
    meter.update(outputs, Batch(torch.zeros(2), torch.zeros(2, 1, 2), torch.tensor([0, 1])))
    assert own.figures(meter.scores()) == {"delta1": None} and own.words({"delta1": None}).startswith("no scored map")


def test_nothing_to_learn_is_said(tmp_path: Path) -> None:
    for row in range(4):
        for kind in ("images", "depths"):
            (tmp_path / kind).mkdir(exist_ok=True)
            Image.new("L" if kind == "depths" else "RGB", (8, 8)).save(tmp_path / kind / f"{row}.png")
    settings = {"augment": "none", "resize": "squash"}
    from peft_data import open_data

    with pytest.raises(PeftError, match="know no depth"):
        Depth.of(open_data(str(tmp_path), task="depth"), settings)
