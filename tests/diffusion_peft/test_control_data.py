"""Pairs from folders, columns and the drawn world; what is wrong with them is told in one sentence."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft_data import DataError
from PIL import Image

import datasets
from diffusion_peft.control.conditions import CONDITIONS, compute
from diffusion_peft.control.data import Grounded, Pair, open_pairs
from diffusion_peft.control.inputs import through
from diffusion_peft.control.options import ControlOptions
from diffusion_peft.data.buckets import Crop
from peft_core.errors import PeftError
from tests.diffusion_peft.conftest import draw_pictures

BOX = {"boxes": [[0.1, 0.2, 0.5, 0.9]], "phrases": ["a dog"]}


def options(**given: Any) -> dict[str, Any]:
    return ControlOptions("", given).all()


def folder_of_pairs(folder: Path, count: int = 3) -> Path:
    draw_pictures(folder / "images", [(16, 16)] * count)
    draw_pictures(folder / "conditions", [(16, 16)] * count, seed=1)
    (folder / "captions").mkdir()
    for number in range(count):
        (folder / "captions" / f"{number}.txt").write_text(f"picture {number}\n")
    return folder


def said(data: Any, **given: Any) -> str:
    with pytest.raises((PeftError, DataError)) as error:
        open_pairs(str(data), options(**given))
    assert str(error.value).count("\n") == 0 or "\n  " in str(error.value)
    return str(error.value)


def test_folder(tmp_path: Path) -> None:
    folder = folder_of_pairs(tmp_path)
    kind, pairs = open_pairs(str(folder), options(condition="depth"))
    assert kind == "depth" and [pair.picture.caption for pair in pairs] == [f"picture {n}" for n in range(3)]
    assert pairs[1].condition == folder / "conditions" / "1.png"
    (folder / "conditions" / "1.png").unlink()
    (folder / "images" / "2.png").unlink()
    message = said(folder, condition="depth")
    assert (
        "2 pairs" in message
        and "images/1.png has no condition" in message
        and "conditions/2.png has no picture" in message
    )


def test_conditions_of_another_shape_and_broken_ones(tmp_path: Path) -> None:
    folder = folder_of_pairs(tmp_path)
    Image.new("RGB", (32, 16)).save(folder / "conditions" / "0.png")
    assert "images/0.png: the picture is 16 × 16, its condition 32 × 16" in said(folder, condition="canny")
    (folder / "conditions" / "0.png").write_text("no picture")
    (folder / "images" / "1.png").write_text("no picture")
    message = said(folder, condition="canny")
    assert "2 pairs cannot be read" in message and "images/0.png" in message and "images/1.png" in message


def test_without_conditions_they_are_computed(tmp_path: Path) -> None:
    draw_pictures(tmp_path / "images", [(16, 16)])
    _, (pair,) = open_pairs(str(tmp_path), options(condition="canny"))
    assert pair.condition is None
    assert "miss their half" in said(tmp_path, condition="mask")


def test_names(tmp_path: Path) -> None:
    assert 'unknown condition "cany", did you mean "canny"?' in said(tmp_path, condition="cany")
    assert "did you mean 'depth'" in said("world/control/dept")
    assert "which condition?" in said(tmp_path)
    assert "has no images/" in said(tmp_path, condition="canny")
    assert "there is no folder" in said(tmp_path / "nowhere", condition="canny")
    assert "has canny, but --control.condition is depth" in said("world/control/canny", condition="depth")


def test_columns(tmp_path: Path) -> None:
    folder_of_pairs(tmp_path, 2)
    lines = [{"file_name": f"images/{n}.png", "edges": f"conditions/{n}.png", "text": f"a {n}"} for n in range(2)]
    (tmp_path / "metadata.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    _, pairs = open_pairs(str(tmp_path), options(condition="canny", condition_column="edges"))
    assert [pair.condition for pair in pairs] == [tmp_path / "conditions" / f"{n}.png" for n in range(2)]
    assert 'no column "edge", did you mean "edges"' in said(tmp_path, condition="canny", condition_column="edge")
    (tmp_path / "conditions" / "1.png").unlink()
    assert "line 2 of" in (message := said(tmp_path, condition="canny", condition_column="edges"))
    assert "names conditions/1.png, which is not there" in message


def test_hugging_face_columns(tmp_path: Path) -> None:
    pictures = [Image.fromarray(np.full((8, 8, 3), 40 * n, np.uint8)) for n in range(3)]
    table = datasets.Dataset.from_dict(
        {"target": pictures, "source": [*pictures[:2], None], "prompt": ["a", "b", "c"]},
        features=datasets.Features(
            {"target": datasets.Image(), "source": datasets.Image(), "prompt": datasets.Value("string")}
        ),
    )
    table.save_to_disk(tmp_path / "whole")
    assert "1 pairs of" in said(f"hf/{tmp_path}/whole", condition="depth", condition_column="source")
    table.select([0, 1]).save_to_disk(tmp_path / "pairs")
    _, pairs = open_pairs(f"hf/{tmp_path}/pairs", options(condition="depth"))
    assert [pair.picture.caption for pair in pairs] == ["a", "b"] and isinstance(pairs[0].condition, Image.Image)


@pytest.mark.parametrize(
    "change, words",
    [
        ({"boxes": [[0.1, 0.2, 1.5, 0.9]]}, "leaves the picture"),
        ({"boxes": [[0.5, 0.2, 0.1, 0.9]]}, "is inverted or empty"),
        ({"boxes": [[0.1, 0.2, 0.5]]}, "must be four numbers"),
        ({"phrases": ["a", "b"]}, "has 1 boxes and 2 phrases"),
        ({"boxes": BOX["boxes"] * 31, "phrases": ["a"] * 31}, "takes 30 at the most"),
        ({"phrases": 3}, "must be like"),
    ],
    ids=str,
)
def test_boxes(change: dict[str, Any], words: str, tmp_path: Path) -> None:
    draw_pictures(tmp_path / "images", [(16, 16)])
    (tmp_path / "conditions").mkdir()
    file = tmp_path / "conditions" / "0.json"
    file.write_text(json.dumps(BOX))
    _, (pair,) = open_pairs(str(tmp_path), options(condition="box"))
    assert pair.condition == Grounded(((0.1, 0.2, 0.5, 0.9),), ("a dog",))
    file.write_text(json.dumps(BOX | change))
    assert words in said(tmp_path, condition="box")


def test_boxes_follow_the_crop() -> None:
    found = Grounded(((0.0, 0.0, 0.5, 0.5), (0.9, 0.0, 1.0, 1.0)), ("a", "b"))
    crop = Crop((8, 8), (8, 16), (0, 4))  # the middle half of the width
    assert through(found, 8, 16, crop, False).boxes == ((0.0, 0.0, 0.5, 0.5),)
    assert through(found, 8, 16, crop, True).boxes == ((0.5, 0.0, 1.0, 0.5),)


def test_computed_conditions() -> None:
    picture = Image.new("RGB", (32, 32), "black")
    picture.paste("white", (8, 8, 24, 24))
    edges = np.asarray(compute("canny", picture))
    assert edges.shape == (32, 32, 3) and edges[16, 16].sum() == 0 and edges[16, 6:10].sum() > 0
    assert np.asarray(compute("scribble", picture)).sum() > 0
    assert len(set(map(tuple, np.asarray(compute("colour", picture)).reshape(-1, 3)))) == 2
    assert compute("picture", picture) is picture
    with pytest.raises(PeftError, match="a mask cannot be computed"):
        compute("mask", picture)


def test_models_that_cannot_be_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    from diffusion_peft.control import estimators

    def offline(*_: Any) -> None:
        raise OSError("no network")

    monkeypatch.setattr(estimators, "must_reach", offline)
    with pytest.raises(PeftError, match="the depth of a picture needs nobody/nothing, which cannot be had"):
        estimators.estimate_depth(Image.new("RGB", (8, 8)), "nobody/nothing")


def test_drawn_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    from peft_data.world import control

    monkeypatch.setattr(control, "COUNTS", {"train": 6, "test": 4})
    monkeypatch.setattr(control, "BLOCK", 8)
    assert set(control.CONDITIONS) == set(CONDITIONS)
    drawn = {name: control.draw_pairs(name, 6, size=32) for name in CONDITIONS}
    for name, pairs in drawn.items():
        assert torch.equal(pairs.pictures, drawn["canny"].pictures) and pairs.captions == drawn["canny"].captions
        assert (pairs.conditions is None) == (name == "box")
    one = drawn["mask"]
    assert torch.equal(one.conditions.any(1), one.classes > 0)
    assert torch.equal(drawn["canny"].conditions[:, 0] > 0, one.outlines)
    for number, (boxes, phrases) in enumerate(zip(one.boxes, one.phrases, strict=True)):
        assert len(boxes) == len(phrases) and all(phrase.split(" ")[0] in one.captions[number] for phrase in phrases)
    kind, pairs = open_pairs("world/control/box", options())
    assert kind == "box" and len(pairs) == 6 and isinstance(pairs[0], Pair) and isinstance(pairs[0].condition, Grounded)
    train, test = (open_pairs("world/control/depth", options(), split)[1] for split in ("train", "test"))
    assert {p.picture.digest() for p in train}.isdisjoint(p.picture.digest() for p in test) and len(test) == 4
