"""A class a pixel: heads on several backbones, and a run from masks to masks."""

import json
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image

from peft_core import PeftError, adapt, count_parameters, load_run, merge
from peft_core.jobs.hub.backbone import Backbone
from tests.vision_peft.conftest import SMALL
from vision_peft.commands import main
from vision_peft.dense.model import dense_model
from vision_peft.dense.segment import MaskScores, Segment, palette
from vision_peft.fit import fit

MODELS = {
    "vit_tiny_patch16_224": dict(img_size=32, depth=4, embed_dim=24, num_heads=2),
    "swin_tiny_patch4_window7_224": dict(
        img_size=32, embed_dim=8, depths=(1, 1, 1, 1), num_heads=(1, 1, 2, 2), window_size=4
    ),
    "convnext_atto": dict(depths=(1, 1, 1, 1), dims=(8, 16, 24, 32)),
    "vit_small_patch16_dinov3": dict(img_size=32, embed_dim=32, depth=4, num_heads=2),
}


def load(name: str, outputs: int, drop_path: float):
    model = timm.create_model(name, num_classes=outputs, drop_path_rate=drop_path, **MODELS[name])
    return model, Backbone(name, "", name, (32, 32), (0.5,) * 3, (0.5,) * 3)


@pytest.mark.parametrize("head", ["linear", "pyramid"])
@pytest.mark.parametrize("name", MODELS)
def test_heads_on_maps_of_any_backbone(name: str, head: str) -> None:
    torch.manual_seed(0)
    model, about = dense_model(load, name, 3, 0.0, head, 64, 8)
    assert about.input_size == (64, 64)
    stock, x = model(x := torch.randn(2, 3, 64, 64)), x
    adapt(model, "lora", rank=2)
    torch.testing.assert_close(model(x), stock)
    assert stock.shape == (2, 3, 64, 64) and count_parameters(model).inserted > 0
    model(x).square().mean().backward()
    trained = [p for p in model.parameters() if p.requires_grad]
    assert all(p.grad is not None for p in trained) and any(p.grad.abs().max() > 0 for p in model.head.parameters())
    for key, parameter in model.named_parameters():
        if "peft" in key:
            torch.nn.init.normal_(parameter, std=0.1)
        if "gamma" in key:  # layer scale, which begins near 0
            torch.nn.init.ones_(parameter)
    with torch.no_grad():
        before = model.eval()(x)
        assert not torch.allclose(before, stock, atol=1e-4)
        torch.testing.assert_close(merge(model)(x), before, atol=1e-4, rtol=1e-4)


def test_prompts_do_not_reach_the_maps() -> None:
    model, _ = dense_model(load, "vit_tiny_patch16_224", 3, 0.0, "linear", 0, 8)
    assert adapt(model, "vpt", tokens=3)(torch.zeros(1, 3, 32, 32)).shape == (1, 3, 32, 32)


@pytest.fixture(scope="module")
def halves(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures half red, half blue, whose masks say so."""
    folder, rng = tmp_path_factory.mktemp("halves"), np.random.default_rng(0)
    for row in range(20):
        split = "train" if row < 12 else "val" if row < 14 else "test"
        cut = int(rng.integers(8, 40))
        pixels, mask = np.zeros((36, 48, 3), np.uint8) + 30, np.zeros((36, 48), np.uint8)
        pixels[:, :cut, 0], pixels[:, cut:, 2], mask[:, cut:] = 200, 220, 1
        for kind, image in (("images", pixels), ("masks", mask)):
            (folder / kind / split).mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(folder / kind / split / f"{row}.png")
    (folder / "classes.txt").write_text("red\nblue\n", encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def run(halves: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "halves"
    settings = SMALL | {"augment": "flip", "lr": 0.03, "batch_size": 7, "method": "linear"}
    settings["trainer"] = {"max_epochs": 30, "accelerator": "cpu"}
    fit(data=str(halves), task="segment", dense={"size": 32}, out=str(out), **settings)
    return out


def test_a_run_from_masks_to_masks(run: Path, halves: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    results = json.loads((run / "results.json").read_text(encoding="utf-8"))
    assert results["mIoU"] > 0.7 and set(results["per_class"]) == {"red", "blue"}
    report = (run / "report.html").read_text(encoding="utf-8")
    assert "test/14.png" in report and f"predict --run {run} --out predicted" in report
    assert main(["predict", "--run", str(run), str(halves / "images" / "test"), "--out", str(tmp_path / "said")]) == 0
    assert capsys.readouterr().out.splitlines()[0] == "path,file"
    found = Image.open(tmp_path / "said" / "17.png")
    true = np.asarray(Image.open(halves / "masks" / "test" / "17.png"))
    assert found.mode == "P" and (np.asarray(found) == true).mean() > 0.8
    assert main(["predict", "--run", str(run), str(halves / "images" / "test")]) == 2
    assert "give --out a folder" in capsys.readouterr().err
    assert main(["test", "--run", str(run)]) == 0
    assert f"mIoU {results['mIoU']:.4f}, pixel accuracy" in capsys.readouterr().out


@pytest.mark.slow
def test_merged_weights_run_in_plain_timm_and_onnx(
    run: Path, halves: Path, tmp_path: Path, capsys, monkeypatch
) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    loaded = load_run(run)
    assert main(["merge", "--run", str(run), "--out", str(tmp_path / "m.safetensors")]) == 0
    import PIL
    import safetensors.torch

    lines = [line.strip() for line in capsys.readouterr().out.splitlines() if line.startswith("  ")]
    (tmp_path / "picture.png").write_bytes((halves / "images" / "test" / "14.png").read_bytes())
    monkeypatch.chdir(tmp_path)
    known = {"timm": timm, "safetensors": safetensors, "torch": torch, "PIL": PIL}
    exec("\n".join(lines), known)
    with torch.no_grad():
        maps = loaded.model.maps(known["x"])
        torch.testing.assert_close(known["outputs"], loaded.model.head(maps), atol=1e-4, rtol=1e-4)
    assert main(["export", "--run", str(run), "--out", str(tmp_path / "m.onnx")]) == 0
    assert "probability B 2 H W" in capsys.readouterr().out
    x = torch.rand(2, 3, 32, 32)
    (found,) = onnxruntime.InferenceSession(str(tmp_path / "m.onnx")).run(["probability"], {"image": x.numpy()})
    normal = (x - torch.tensor(loaded.mean)[:, None, None]) / torch.tensor(loaded.std)[:, None, None]
    torch.testing.assert_close(torch.tensor(found), loaded.model(normal).softmax(1).detach(), atol=1e-4, rtol=1e-3)


def test_what_cannot_be_is_said(halves: Path, capsys: pytest.CaptureFixture) -> None:
    for words, sentence in {
        ("--augment", "crop_flip"): "takes --augment none or flip",
        ("--resize", "crop"): "--resize squash",
        ("--label_smoothing", "0.1"): "segment has none",
        ("--dense.size", "4"): "choose another --dense.size",
        ("--dense.head", "pyramyd"): '"pyramid"',
    }.items():
        given = ["fit", "--data", str(halves), "--task", "segment", "--augment", "none", "--resize", "squash", *words]
        assert main(given) == 2, words
        assert sentence in capsys.readouterr().err


def test_scores_by_hand() -> None:
    scores = MaskScores(torch.tensor([[3, 1, 0], [2, 4, 0], [0, 0, 0]]), {})
    assert scores.unions[:2].tolist() == [pytest.approx(3 / 6), pytest.approx(4 / 7)] and scores.unions[2].isnan()
    assert scores.value == pytest.approx((3 / 6 + 4 / 7) / 2) and scores.accuracy == pytest.approx(0.7)
    task, outputs = Segment("abc", {}), torch.tensor([[[[2.0, 0.0]], [[0.0, 1.0]], [[0.0, 0.0]]]])
    loss = task.loss(outputs, torch.tensor([[[0, 255]]], dtype=torch.uint8))
    torch.testing.assert_close(loss, -torch.tensor([2.0, 0.0, 0.0]).log_softmax(0)[0])
    batch_scores = task.meter()
    from peft_data.batches import Batch

    batch_scores.update(
        outputs, Batch(torch.zeros(1), torch.tensor([[[0, 255]]], dtype=torch.uint8), torch.tensor([5]))
    )
    found = batch_scores.scores()
    assert found.value == 1 and list(found.masks) == [5]
    assert len(palette(9)) == 27 and palette(2)[:3] == [0, 0, 0]


def test_pictures_and_masks_are_mirrored_alike() -> None:
    from peft_data.augment import augmentation
    from peft_data.batches import Batch

    images = torch.arange(8, dtype=torch.uint8).repeat(6, 3, 4, 1)
    batch = Batch(images, images[:, 0], torch.arange(6))
    changed, masks = Segment("ab", {}).augmented(augmentation("flip"), batch, torch.Generator().manual_seed(1))
    assert torch.equal(changed[:, 0], masks) and not torch.equal(changed, images)


def test_a_model_without_maps_is_refused() -> None:
    with pytest.raises(PeftError, match="gives no feature maps"):
        dense_model(lambda *_: (torch.nn.Linear(2, 2), load("convnext_atto", 0, 0.0)[1]), "x", 2, 0.0, "linear", 0, 8)
