"""Masks: the layouts they come in, what their pixels mean, and what is wrong with them."""

from pathlib import Path

import numpy as np
import pytest
import torch
from peft_data import DataError, open_data
from peft_data.segment.masks import IGNORED, Masks, SegmentationData
from peft_data.world.dense import draw_dense
from PIL import Image


def picture(path: Path, size: tuple[int, int] = (8, 6)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    number = sum(map(ord, path.stem))
    Image.new("RGB", size, (number % 256, 3, 7)).save(path)


def mask(path: Path, values: np.ndarray, mode: str | None = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values.astype(np.uint8), mode=mode).save(path)


def halves(low: int, high: int) -> np.ndarray:
    found = np.full((6, 8), low)
    found[:, 4:] = high
    return found


def opened(path: Path, **options: object) -> SegmentationData:
    data = open_data(str(path), task="segment", **options)
    assert isinstance(data, SegmentationData)
    return data


def test_folders_with_splits_inside_and_around(tmp_path: Path) -> None:
    for split, count in (("train", 12), ("val", 2), ("test", 3)):
        for row in range(count):
            for form, place in (("inside", f"images/{split}"), ("around", f"{split}/images")):
                picture(tmp_path / form / place / f"{row}.png")
                mask(tmp_path / form / place.replace("images", "masks") / f"{row}_mask.png", halves(row % 3, 255))
    (tmp_path / "inside" / "classes.txt").write_text("sky\nearth\nsea\n", encoding="utf-8")
    for form, names in (("inside", ("sky", "earth", "sea")), ("around", ("class 0", "class 1", "class 2"))):
        data = opened(tmp_path / form)
        assert data.class_names == names and [len(part) for part in (data.train, data.val, data.test)] == [12, 2, 3]
        both = data.train + data.val
        masks = data.masks.at(both.labels.tolist(), (3, 4), 3)
        assert masks.shape == (14, 3, 4) and (masks[:, :, 2:] == IGNORED).all()
        for row, path in enumerate(both.items):
            assert (masks[row, :, :2] == int(path.stem) % 3).all()


def test_one_folder_is_split_by_the_seed_and_masks_stay_with_their_pictures(tmp_path: Path) -> None:
    for row in range(10):
        picture(tmp_path / "images" / f"{row}.jpg")
        mask(tmp_path / "masks" / f"{row}.png", np.full((6, 8), row))
    data = opened(tmp_path)
    assert [len(part) for part in (data.train, data.val, data.test)] == [6, 2, 2]
    for part in (data.train, data.val, data.test):
        found = data.masks.at(part.labels.tolist(), (6, 8), 10)[:, 0, 0].tolist()
        assert found == [int(path.stem) for path in part.items]


def test_colours_voc_and_ade20k(tmp_path: Path) -> None:
    colours = np.zeros((6, 8, 3))
    colours[:, 4:] = (200, 0, 10)
    for row in range(3):
        picture(tmp_path / "c" / "images" / f"{row}.png")
        mask(tmp_path / "c" / "masks" / f"{row}.png", colours)
        picture(tmp_path / "ade" / "images" / ("training" if row else "validation") / f"{row}.jpg")
        mask(tmp_path / "ade" / "annotations" / ("training" if row else "validation") / f"{row}.png", halves(0, 2))
        picture(tmp_path / "voc" / "JPEGImages" / f"{row}.jpg")
        mask(tmp_path / "voc" / "SegmentationClass" / f"{row}.png", halves(15, 255))
    (tmp_path / "c" / "classes.txt").write_text("ground 0 0 0\nred thing 200 0 10\n", encoding="utf-8")
    data = opened(tmp_path / "c")
    assert data.class_names == ("ground", "red thing")
    assert data.masks.at([0], (6, 8), 2)[0, 0].tolist() == [0] * 4 + [1] * 4
    data = opened(tmp_path / "ade")
    assert data.class_names == ("class 1", "class 2") and len(data.test) == 1
    assert data.masks.at([0], (6, 8), 2)[0, 0].tolist() == [IGNORED] * 4 + [1] * 4
    lists = tmp_path / "voc" / "ImageSets" / "Segmentation"
    lists.mkdir(parents=True)
    (lists / "train.txt").write_text("0\n1\n", encoding="utf-8")
    (lists / "val.txt").write_text("2\n", encoding="utf-8")
    data = opened(tmp_path / "voc")
    assert data.class_names[15] == "person" and len(data.test) == 1


def test_drawn_masks_fit_their_pictures() -> None:
    drawn = draw_dense("rooms", "train", 6, size=32)
    masks, boxes = drawn["masks"], drawn["boxes"]
    assert drawn["pictures"].shape == (6, 3, 32, 32) and set(masks[:, 0].unique().tolist()) <= {0, *range(2, 8)}
    for row in range(6):
        for box, kind in zip(boxes[row].round().int().tolist(), drawn["kinds"][row].tolist(), strict=True):
            left, top, right, bottom = box
            if right > left:
                assert (masks[row, top:bottom, left:right] == kind).any()
    assert (drawn["depths"][masks == 0] == 8).all()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda at: (at / "masks" / "0.png").unlink(), "1 pictures have no mask of their name"),
        (lambda at: picture(at / "images" / "0.png", (9, 6)), r"1 masks have another size than their pictures.*\n.*8 × 6"),
        (lambda at: mask(at / "masks" / "0.png", np.zeros((6, 8, 3))), "is in colours .RGB.: list them in classes.txt"),
        (lambda at: (at / "classes.txt").write_text("a 1 1 1\nb 2 2 2\n", encoding="utf-8"), "has the colour 0 0 0"),
        (lambda at: (at / "classes.txt").write_text("a\na\n", encoding="utf-8"), "whose name or colour stood there before"),
        (lambda at: (at / "classes.txt").write_text("a\nb\n", encoding="utf-8"), "has the class 2, and there are 2"),
        (lambda at: (at / "masks" / "0.png").write_text("x", encoding="utf-8"), "the mask .*0.png cannot be read"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said(change, says: str, tmp_path: Path) -> None:
    for row in range(3):
        picture(tmp_path / "images" / f"{row}.png")
        mask(tmp_path / "masks" / f"{row}.png", halves(0, row))
    change(tmp_path)
    with pytest.raises(DataError, match=says):
        data = opened(tmp_path)
        data.masks.at(range(3), (6, 8), len(data.class_names))


def test_masks_are_cut_down_by_the_nearest_pixel() -> None:
    masks = Masks(torch.tensor([[[0, 0, 1, 1]] * 4], dtype=torch.uint8))
    assert masks.at([0], (2, 2), 2).tolist() == [[[0, 1], [0, 1]]]
