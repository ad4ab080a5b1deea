"""Boxes: the losses, the boxes and the precision against torchvision's and COCO's, and a run from boxes to boxes."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torchvision.models.detection.fcos import FCOS

from peft_core import PeftError, adapt, load_run, merge
from peft_core.jobs.data import Data, fingerprint
from tests.peft_data.test_detect import coco
from tests.peft_data.test_segment import halves, mask, picture
from tests.vision_peft.conftest import SMALL
from tests.vision_peft.test_dense import MODELS, load
from vision_peft.commands import main
from vision_peft.dense.boxes import detections, loss
from vision_peft.dense.detect import Detect
from vision_peft.dense.detector import detector, places_of
from vision_peft.dense.precision import scores
from vision_peft.fit import fit

CLASSES, SIZE, SHAPES = 5, (64, 96), ((16, 24), (8, 12), (4, 6))
ODD, ODD_SHAPES = (70, 105), ((24, 36), (12, 18), (6, 9))
"""Strides of 35/12, 35/6 and 35/3, which no float holds."""


def drawn(
    size: tuple[int, int] = SIZE, shapes: Sequence[tuple[int, int]] = SHAPES
) -> tuple[torch.Tensor, torch.Tensor]:
    """Random outputs on three maps, and boxes: four, two and none."""
    torch.manual_seed(0)
    around = torch.cat([places_of(shape, size, torch.device("cpu")) for shape in shapes])
    places = len(around)
    parts = [torch.randn(3, places, CLASSES) * 2 - 2, torch.randn(3, places, 1), torch.rand(3, places, 4) * 3]
    boxes = torch.full((3, 4, 6), -1.0)
    for row, count in enumerate((4, 2, 0)):
        low, side = torch.rand(count, 2) * torch.tensor([60.0, 40.0]), torch.rand(count, 2) * 35 + 3
        kind, easy = torch.randint(0, CLASSES, (count, 1)), torch.zeros(count, 1)
        boxes[row, :count] = torch.cat([kind, low, (low + side).minimum(torch.tensor(size[::-1])), easy], 1)
    return torch.cat([*parts, around.expand(3, -1, -1)], -1).requires_grad_(), boxes


def test_a_run_is_told_from_one_with_other_boxes_or_masks(tmp_path: Path) -> None:
    file = coco(tmp_path)
    first = fingerprint(Data(str(file), {}, "detect").open())
    assert first == fingerprint(Data(str(file), {}, "detect").open())
    file.write_text(file.read_text("utf-8").replace("[4, 2, 8, 10]", "[4, 2, 8, 9]"), "utf-8")
    assert first != fingerprint(Data(str(file), {}, "detect").open())
    for row in range(10):
        picture(tmp_path / "s" / "images" / f"{row}.png")
        mask(tmp_path / "s" / "masks" / f"{row}.png", halves(0, 1))
    first = fingerprint(Data(str(tmp_path / "s"), {}, "segment").open())
    mask(tmp_path / "s" / "masks" / "3.png", halves(1, 1))
    assert first != fingerprint(Data(str(tmp_path / "s"), {}, "segment").open())


@pytest.mark.parametrize(("size", "shapes"), [(SIZE, SHAPES), (ODD, ODD_SHAPES)])
def test_losses_and_boxes_are_torchvisions(size: tuple[int, int], shapes: Sequence[tuple[int, int]]) -> None:
    outputs, boxes = drawn(size, shapes)
    backbone = nn.Identity()
    backbone.out_channels = 32
    own = FCOS(backbone, CLASSES, score_thresh=0.05)
    names = {"cls_logits": outputs[..., :5], "bbox_ctrness": outputs[..., 5:6], "bbox_regression": outputs[..., 6:10]}
    targets = [{"boxes": each[each[:, 0] >= 0, 1:5], "labels": each[each[:, 0] >= 0, 0].long()} for each in boxes]
    counts = [height * width for height, width in shapes]
    centres, strides = outputs[0, :, 10:].detach().split(2, 1)
    anchors = torch.cat([centres - strides / 2, centres + strides / 2], 1)
    true = sum(own.compute_loss(targets, names, [anchors] * 3, counts).values())
    found = loss(outputs, boxes)
    torch.testing.assert_close(found, true)
    gradients = [torch.autograd.grad(each, outputs)[0][..., :10] for each in (found, true)]
    torch.testing.assert_close(*gradients)
    several = {key: list(value.split(counts, 1)) for key, value in names.items()}
    said = own.postprocess_detections(several, [list(anchors.split(counts))] * 3, [size] * 3)
    for mine, theirs in zip(detections(outputs), said, strict=True):
        assert len(theirs["scores"]) == (mine[:, 0] >= 0).sum() > 10
        torch.testing.assert_close(mine[:, 1:5], theirs["boxes"])
        torch.testing.assert_close(mine[:, 5], theirs["scores"])
        assert torch.equal(mine[:, 0].long(), theirs["labels"])


def test_a_place_in_a_hard_box_alone_learns_nothing() -> None:
    outputs, boxes = drawn()
    hard = boxes[1:2].clone()
    hard[0, :2, 5] = 1
    (gradient,) = torch.autograd.grad(loss(outputs[1:2], hard), outputs)
    middle = outputs[1, :, 10:12]
    covered = ((middle[:, None] > hard[0, :2, 1:3]) & (middle[:, None] < hard[0, :2, 3:5])).all(-1).any(1)
    assert covered.any() and not gradient[1, covered].any() and gradient[1, ~covered, :5].all()


def some_boxes(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """True boxes of 20 pictures, some hard, and found ones near and far from them."""
    torch.manual_seed(seed)
    true, found = torch.full((20, 6, 6), -1.0), torch.full((20, 100, 6), -1.0)
    for row in range(20):
        count = int(torch.randint(0, 7, ()))
        low, side = torch.rand(count, 2) * 60, torch.rand(count, 2) * 40 + 5
        kind, hard = torch.randint(0, 2 + seed % 2, (count, 1)), (torch.rand(count, 1) < 0.2).float()
        true[row, :count] = torch.cat([kind, low, low + side, hard], 1)
        near = true[row, :count].repeat(3, 1)
        near[:, 1:5] += torch.randn(len(near), 4)
        far = torch.tensor([[1.0, 5, 5, 25, 20, 0]])
        both = torch.cat([near, far])
        both[:, 5] = torch.rand(len(both))
        found[row, : len(both)] = both[both[:, 5].argsort(descending=True)]
    return found, true


@pytest.mark.parametrize("seed", [0, 1])
def test_precision_is_cocos(seed: int) -> None:
    coco, evaluation = pytest.importorskip("pycocotools.coco"), pytest.importorskip("pycocotools.cocoeval")
    found, true = some_boxes(seed)
    own = scores(found, true, 3)

    def listed(boxes: torch.Tensor, last: str) -> list[dict]:
        return [
            {"id": number + 1, "image_id": row, "category_id": int(box[0]), last: box[5],
             "bbox": [box[1], box[2], box[3] - box[1], box[4] - box[2]], "area": 1000}
            for number, (row, box) in enumerate(
                (row, box) for row, rows in enumerate(boxes.double().tolist()) for box in rows if box[0] >= 0
            )
        ]  # fmt: skip

    theirs = coco.COCO()
    images, kinds = [{"id": row} for row in range(20)], [{"id": row} for row in range(3)]
    crowds = [each | {"iscrowd": int(each["iscrowd"])} for each in listed(true, "iscrowd")]
    theirs.dataset = {"images": images, "categories": kinds, "annotations": crowds, "info": {}}
    theirs.createIndex()
    judge = evaluation.COCOeval(theirs, theirs.loadRes(listed(found, "score")), "bbox")
    judge.evaluate()
    judge.accumulate()
    expected = judge.eval["precision"][..., 0, 2].mean(1).T  # recalls, classes at each overlap
    np.testing.assert_allclose(np.nan_to_num(own.precisions, nan=-1), expected, atol=1e-12)


def test_precision_by_hand() -> None:
    true = torch.tensor([[[0.0, 0, 0, 10, 10, 0], [0, 20, 20, 30, 30, 0], [1, 40, 40, 60, 60, 1]]])
    found = torch.tensor(
        [[[0.0, 0, 0, 10, 10, 0.9], [0, 50, 0, 60, 10, 0.8], [0, 20, 20, 30, 26, 0.7], [1, 41, 41, 49, 49, 1]]]
    )
    own = scores(found, true, 2)
    # recalls to .5 at precision 1; the second box hits at IoU .6, below .65, and comes third
    at = [(51 + 50 * 2 / 3) / 101] * 3 + [51 / 101] * 7
    np.testing.assert_allclose(own.precisions[0], at)
    assert own.counts == [2, 0] and np.isnan(own.precisions[1]).all() and own.value == pytest.approx(np.mean(at))


@pytest.mark.parametrize("head", ["linear", "pyramid"])
@pytest.mark.parametrize("name", MODELS)
def test_a_head_on_maps_of_any_backbone(name: str, head: str) -> None:
    torch.manual_seed(0)
    model, about = detector(load, name, 3, 0.0, head, 64, 32)
    x = torch.randn(2, 3, 64, 64)
    stock = model(x)
    adapt(model, "lora", rank=2)
    torch.testing.assert_close(model(x), stock)
    assert about.input_size == (64, 64) and stock.shape[0] == 2 and stock.shape[2] == 3 + 9
    boxes = torch.tensor([[[0.0, 4, 4, 40, 30, 0]], [[-1.0] * 6]])
    loss(model(x), boxes).backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
    torch.testing.assert_close(merge(model)(x), stock, atol=1e-4, rtol=1e-4)


def test_boxes_are_mirrored_with_their_pictures() -> None:
    from peft_data.augment import augmentation
    from peft_data.batches import Batch

    images = torch.zeros(8, 3, 4, 10, dtype=torch.uint8)
    images[..., 1:4] = 9
    boxes = torch.tensor([[0.0, 1, 0, 4, 4, 0], [-1] * 6]).expand(8, 2, 6)
    task, chance = Detect(("a",), {}), torch.Generator().manual_seed(1)
    changed, found = task.augmented(augmentation("flip"), Batch(images, boxes, torch.arange(8)), chance)
    turned = (changed[:, 0, 0, 6] == 9).tolist()
    assert any(turned) and not all(turned)
    for each, rows in zip(turned, found.tolist(), strict=True):
        assert rows == [[0, 6, 0, 9, 4, 0] if each else [0, 1, 0, 4, 4, 0], [-1] * 6]


@pytest.fixture(scope="module")
def squares_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A red and a blue square a picture of 48 × 36, in COCO's form."""
    folder, rng, images, found = tmp_path_factory.mktemp("squares"), np.random.default_rng(0), [], []
    for row in range(24):
        pixels = np.full((36, 48, 3), 40, np.uint8)
        for kind, (left, top) in enumerate(
            zip(rng.integers(0, (8, 26)) + (0, 24), rng.integers(0, 20, 2), strict=False)
        ):
            left = min(int(left) % 24 + 24 * kind, 34)
            pixels[top : top + 14, left : left + 14, 2 * kind] = 230
            found.append({"image_id": row, "category_id": kind, "bbox": [left, int(top), 14, 14], "iscrowd": 0})
        Image.fromarray(pixels).save(folder / f"{row}.png")
        images.append({"id": row, "file_name": f"{row}.png"})
    names = [{"id": 0, "name": "red"}, {"id": 1, "name": "blue"}]
    content = {"images": images, "annotations": found, "categories": names}
    (folder / "all.json").write_text(json.dumps(content), "utf-8")
    return folder / "all.json"


@pytest.fixture(scope="module")
def run(squares_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "squares"
    settings = SMALL | {"augment": "flip", "lr": 0.02, "batch_size": 5, "method": "linear"}
    settings["trainer"] = {"max_epochs": 60, "accelerator": "cpu"}
    fit(data=str(squares_data), task="detect", out=str(out), dense={"width": 32}, **settings)
    return out


def test_a_run_from_boxes_to_boxes(
    run: Path, squares_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    results = json.loads((run / "results.json").read_text(encoding="utf-8"))
    assert results["AP50"] > 0.4 and set(results["per_class"]) == {"red", "blue"}
    report = (run / "report.html").read_text(encoding="utf-8")
    assert "what was found" in report and "--out boxes.json" in report and "vision_peft export" not in report
    picture = squares_data.parent / "0.png"
    assert main(["predict", "--run", str(run), str(picture), "--out", str(tmp_path / "b.json")]) == 0
    (found,) = json.loads((tmp_path / "b.json").read_text(encoding="utf-8"))
    assert (found["width"], found["height"]) == (48, 36) and found["boxes"]
    best = found["boxes"][0]
    annotations = json.loads(squares_data.read_text(encoding="utf-8"))["annotations"][:2]
    left, top, *_ = annotations[["red", "blue"].index(best["class"])]["bbox"]
    assert best["box"] == pytest.approx([left, top, left + 14, top + 14], abs=7)
    capsys.readouterr()
    assert main(["test", "--run", str(run)]) == 0
    assert f"AP {results['AP']:.4f}, AP50" in capsys.readouterr().out
    assert main(["predict", "--run", str(run), str(picture), "--out", str(tmp_path)]) == 2
    assert "must be a .json file" in capsys.readouterr().err
    assert main(["export", "--run", str(run), "--out", str(tmp_path / "m.onnx")]) == 2
    assert "put together outside the network" in capsys.readouterr().err
    assert main(["merge", "--run", str(run), "--out", str(tmp_path / "m.safetensors")]) == 0
    told = capsys.readouterr().out
    assert "maps = model" in told and "the head reads these maps" in told and "out.weight" not in told
    assert len(load_run(run).predict(str(picture))) == 1


def test_an_odd_width_is_refused() -> None:
    with pytest.raises(PeftError, match="multiple of 32"):
        detector(load, "convnext_atto", 2, 0.0, "linear", 0, 40)
