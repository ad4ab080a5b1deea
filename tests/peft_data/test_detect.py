"""Boxes: the layouts they come in, at the pictures' size, and what is wrong with them."""

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from peft_data import DataError, open_data
from peft_data.detect.boxes import DetectionData
from peft_data.world import dense
from PIL import Image

XML = "<annotation>{}</annotation>"
OBJECT = (
    "<object><name>{}</name><difficult>{}</difficult><bndbox><xmin>{}</xmin><ymin>{}</ymin><xmax>{}</xmax><ymax>{}</ymax>"
    "</bndbox></object>"
)


def coco(folder: Path, boxes: Sequence[tuple] = (("cat", 4, 2, 8, 10, 0),), pictures: int = 10) -> Path:
    """Pictures of 40 × 20 pixels with these boxes in the first (class, left, top, width, height, crowd), one in the others."""
    names, annotations = ("dog", "cat", "unused"), []
    for row in range(pictures):
        Image.new("RGB", (40, 20), (row, 3, 7)).save(folder / f"{row}.png")
        for name, *box, crowd in boxes if row == 0 else [("dog" if row % 2 else "cat", 0, 0, 20, 20, 0)]:
            annotations.append({"image_id": row, "category_id": names.index(name), "bbox": box, "iscrowd": crowd})
    images = [{"id": row, "file_name": f"{row}.png"} for row in range(pictures)]
    categories = [{"id": row, "name": name} for row, name in enumerate(names)]
    file = folder / "all.json"
    file.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}), "utf-8")
    return file


def opened(path: Path) -> DetectionData:
    data = open_data(str(path), task="detect")
    assert isinstance(data, DetectionData)
    return data


def test_coco(tmp_path: Path) -> None:
    found = (("cat", 4, 2, 8, 10, 0), ("dog", 30, 10, 11, 10, 1), ("dog", 5, 5, 0, 9, 0))
    data = opened(coco(tmp_path, found))
    assert data.class_names == ("dog", "cat") and [len(p) for p in (data.train, data.val, data.test)] == [6, 2, 2]
    assert any("1 boxes have no width or no height" in note for note in data.notes)
    whole = data.train + data.val + data.test
    row = next(i for i, path in enumerate(whole.items) if path.stem == "0")
    boxes = data.at(whole.labels.tolist(), (40, 40))
    assert boxes.shape == (10, 2, 6)
    torch.testing.assert_close(boxes[row], torch.tensor([[1.0, 4, 4, 12, 24, 0], [0, 30, 20, 40, 40, 1]]))
    other = boxes[(row + 1) % 10]
    assert other[0, 1:].tolist() == [0, 0, 20, 40, 0] and other[1].tolist() == [-1] * 6
    assert data.counts(whole).tolist() == [5, 5]


def test_voc(tmp_path: Path) -> None:
    (tmp_path / "JPEGImages").mkdir()
    (tmp_path / "Annotations").mkdir()
    for row in range(3):
        Image.new("RGB", (40, 20), (row, 3, 7)).save(tmp_path / "JPEGImages" / f"{row}.jpg")
        words = OBJECT.format("cat", 0, 1, 1, 20, 20) + OBJECT.format("dog", row % 2, 11, 1, 40, 10)
        (tmp_path / "Annotations" / f"{row}.xml").write_text(XML.format(words), "utf-8")
    data = opened(tmp_path)
    assert data.class_names == ("cat", "dog")
    expected = torch.tensor([[0, 0, 0, 20, 20, 0], [1, 10, 0, 40, 10, 1.0]])
    torch.testing.assert_close(data.at([1], (20, 40))[0], expected)


def test_drawn_boxes_lie_around_their_things(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PEFT_DATA_CACHE", str(tmp_path))
    monkeypatch.setattr(dense, "SPLITS", {"train": 10, "val": 2, "test": 2})
    data, masks = (
        open_data("world/detect/rooms", task="detect", size=32),
        open_data("world/dense/rooms", task="segment", size=32),
    )
    assert isinstance(data, DetectionData) and len(data.class_names) == 6
    assert torch.equal(data.train.items, masks.train.items)  # type: ignore[arg-type]
    boxes = data.at(range(14), (32, 32))
    for mask, rows in zip(masks.masks.at(range(14), (32, 32), 8), boxes, strict=True):  # type: ignore[attr-defined]
        for kind, left, top, right, bottom, _ in rows[rows[:, 0] >= 0].round().int().tolist():
            assert (mask[top:bottom, left:right] == kind + 2).any()


@pytest.mark.parametrize(
    ("box", "says"),
    [
        (("cat", 30, 2, 15, 5, 0), r"1 pictures .* reach out of them: mend(.|\n)*45.0, 7.0\] in a picture of 40 × 20"),
        (("cat", 4, 2, -3, 5, 0), "reach out of them"),
        (("cat", -9, 2, 5, 5, 0), "reach out of them"),
        (("cat", float("nan"), 2, 5, 5, 0), "reach out of them"),
    ],
)
def test_what_is_wrong_is_said(box: tuple, says: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=says):
        opened(coco(tmp_path, (box,)))


def test_data_without_boxes_are_refused(tmp_path: Path) -> None:
    file = coco(tmp_path)
    content = json.loads(file.read_text("utf-8")) | {"annotations": []}
    file.write_text(json.dumps(content), "utf-8")
    with pytest.raises(DataError, match="no class of boxes"):
        opened(file)
