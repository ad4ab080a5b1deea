"""Depth maps: the files they come in, what their numbers mean, and what is wrong with them."""

from pathlib import Path

import numpy as np
import pytest
import torch
from peft_data import DataError, open_data
from peft_data.depth import world_depth
from peft_data.depth.maps import DepthData
from peft_data.world import dense
from PIL import Image

from tests.peft_data.test_segment import picture


def depth(path: Path, values: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path, values) if path.suffix == ".npy" else Image.fromarray(values).save(path)


def opened(path: Path, **options: object) -> DepthData:
    data = open_data(str(path), task="depth", **options)
    assert isinstance(data, DepthData)
    return data


def test_files_and_their_numbers(tmp_path: Path) -> None:
    plane = np.arange(48.0).reshape(6, 8)
    forms = {
        "0.png": plane.astype(np.uint16) * 256, "1_depth.npy": plane[None].astype(np.float32) * 256,
        "2.npy": np.where(plane == 5, np.inf, np.where(plane == 7, -3, plane * 256))[..., None],
        "3.tiff": plane.astype(np.float32) * 256, "4.npy": (plane[::2, ::2] * 256).astype(np.int32),
    }  # fmt: skip
    for name, values in forms.items():
        picture(tmp_path / "train" / "rgb" / f"{name[0]}.jpg")
        depth(tmp_path / "train" / "depth" / name, values)
    picture(tmp_path / "test" / "rgb" / "9.jpg")
    depth(tmp_path / "test" / "depth" / "9.png", plane.astype(np.uint16))
    data = opened(tmp_path, scale=256)
    assert [len(part) for part in (data.train, data.val, data.test)] == [5, 0, 1] and not data.maps.whole
    assert data.summary == "6 pictures of a depth a pixel: 5 to train, 1 to test"
    found = data.maps.at(data.train.labels.tolist(), (6, 8))
    want = torch.tensor(plane, dtype=torch.float32)
    for row in (0, 1, 3):
        assert torch.equal(found[row], want)
    odd = want.clone()
    odd[0, 5] = odd[0, 7] = 0
    assert torch.equal(found[2], odd)
    assert set(found[4].unique().tolist()) == set(want[::2, ::2].unique().tolist())
    assert data.maps.at([0], (3, 4))[0, 0].tolist() == [9, 11, 13, 15]  # a pixel of the map each, none mixed


def test_what_a_run_is_made_from(tmp_path: Path) -> None:
    for row in range(3):
        picture(tmp_path / "images" / f"{row}.png")
        depth(tmp_path / "depths" / f"{row}.png", np.full((6, 8), row + 1, np.uint16))
    data = opened(tmp_path, val=0.0, test=0.34)
    assert data.maps.whole and data.answers(data.train) != opened(tmp_path, val=0.0, test=0.34, scale=2).answers(
        data.train
    )
    first = data.answers(data.train)
    for row in range(3):
        depth(tmp_path / "depths" / f"{row}.png", np.full((6, 8), 300, np.uint16))
    assert data.answers(data.train) != first


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda at: (at / "depths" / "0.npy").unlink(), "1 pictures have no depth map of their name"),
        (lambda at: np.save(at / "depths" / "0.npy", np.ones((6, 6))), r"1 depth maps have another size.*\n.*6 × 6"),
        (lambda at: np.save(at / "depths" / "0.npy", np.ones((6, 8, 3))), r"cannot be read \(is an array \(6, 8, 3\)"),
        (lambda at: np.save(at / "depths" / "0.npy", np.array(["a"])), "cannot be read"),
        (lambda at: (at / "depths" / "0.npy").rename(at / "depths" / "0.png"), "cannot be read"),
        (lambda at: [(at / "depths" / "0.npy").unlink(), Image.new("RGB", (8, 6)).save(at / "depths" / "0.png")],
         "is in colours .RGB.: save it with one channel"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said(change, says: str, tmp_path: Path) -> None:
    for row in range(3):
        picture(tmp_path / "images" / f"{row}.png")
        depth(tmp_path / "depths" / f"{row}.npy", np.ones((6, 8)))
    change(tmp_path)
    with pytest.raises(DataError, match=says):
        opened(tmp_path).maps.at(range(3), (6, 8))


def test_a_scale_that_is_none(tmp_path: Path) -> None:
    picture(tmp_path / "images" / "0.png")
    depth(tmp_path / "depths" / "0.npy", np.ones((6, 8)))
    with pytest.raises(DataError, match="'scale' of .* must be above 0, not 0"):
        opened(tmp_path, scale=0.0)


def test_drawn_depths_fit_their_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PEFT_DATA_CACHE", str(tmp_path))
    monkeypatch.setattr(dense, "SPLITS", {"train": 4, "val": 2, "test": 2})
    data = world_depth.load("world/depth/rooms", size=32)
    drawn = dense.draw_dense("rooms", "test", 2, size=32)
    assert isinstance(data, DepthData) and isinstance(data.test.items, torch.Tensor)
    assert torch.equal(data.test.items, drawn["pictures"])
    found = data.maps.at(data.test.labels.tolist(), (32, 32))
    torch.testing.assert_close(found, drawn["depths"], rtol=1e-3, atol=0)
    assert found.min() > 1 and found.max() == 8
