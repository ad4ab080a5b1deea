"""Data sets that Hugging Face's and torchvision's libraries read."""

import struct

import numpy as np
import pytest
from peft_data import DataError, open_data
from peft_data.cache import decode
from peft_data.torchvision_sets import NAMES

from tests.peft_data.drawn import class_folders, noise, picture


@pytest.fixture
def hub_table():
    datasets = pytest.importorskip("datasets")
    datasets.disable_progress_bars()

    def make(labels, feature=None, image="image"):
        features = datasets.Features({image: datasets.Image(), "label": feature or datasets.Value("string")})
        rows = {image: [noise(seed=i) for i in range(len(labels))], "label": labels}
        return datasets.Dataset.from_dict(rows, features=features)

    return make


def test_a_saved_hugging_face_set(tmp_path, hub_table) -> None:
    from datasets import ClassLabel, DatasetDict

    feature = ClassLabel(names=["cat", "dog"])
    parts = {"train": hub_table([0, 1] * 10, feature), "validation": hub_table([1, 0, 1], feature)}
    DatasetDict(parts).save_to_disk(str(tmp_path / "pets"))
    data = open_data(str(tmp_path / "pets"), seed=2)
    assert data.name == "pets" and data.class_names == ("cat", "dog")
    assert [len(part) for part in (data.train, data.val, data.test)] == [18, 2, 3]
    assert "its validation split is the test set" in data.notes[0]
    assert data.test.labels.tolist() == [1, 0, 1] and data.test.name(2) == "val/000002"
    decoded = decode(data.test, (12, 16), cache_dir=tmp_path / "cache")
    assert np.array_equal(decoded.images[1].permute(1, 2, 0), noise(seed=1))
    assert decode(data.test.subset([1]), (12, 16), cache_dir=tmp_path / "cache").images.equal(decoded.images[1:2])


def test_a_hugging_face_set_of_words(tmp_path, hub_table) -> None:
    hub_table(["b", "a", "c", "a", "b"] * 2, image="photo").to_parquet(str(tmp_path / "set/train.parquet"))
    with pytest.raises(DataError, match="say with image_column which one it is"):
        open_data(f"hf/{tmp_path}/set", root=str(tmp_path / "cache"))
    with pytest.raises(DataError, match=r"no column 'foto' \(did you mean 'photo'\?\)"):
        open_data(f"hf/{tmp_path}/set", root=str(tmp_path / "cache"), image_column="foto")
    data = open_data(f"hf/{tmp_path}/set", root=str(tmp_path / "cache"), image_column="photo")
    assert data.class_names == ("a", "b", "c")
    assert [len(part) for part in (data.train, data.val, data.test)] == [6, 2, 2]
    assert len(decode(data.train, 8)) == 6


def test_a_hugging_face_set_with_a_missing_label(tmp_path, hub_table) -> None:
    hub_table(["b", "a", None]).save_to_disk(str(tmp_path / "pets"))
    with pytest.raises(DataError, match="row 2 of train of pets has the label None"):
        open_data(str(tmp_path / "pets"))


def test_a_hub_that_cannot_be_reached(monkeypatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    with pytest.raises(DataError, match="cannot be reached to open 'some/set'.*HF_HUB_OFFLINE=1"):
        open_data("hf/some/set")


def idx(path, array) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    head = struct.pack(">BBBB", 0, 0, 8, array.ndim) + struct.pack(f">{array.ndim}I", *array.shape)
    path.write_bytes(head + array.astype(np.uint8).tobytes())


def test_torchvision_set_in_memory(tmp_path) -> None:
    pixels = np.arange(20 * 28 * 28).reshape(20, 28, 28) % 251
    for split, count in (("train", 20), ("t10k", 5)):
        idx(tmp_path / f"MNIST/raw/{split}-images-idx3-ubyte", pixels[:count])
        idx(tmp_path / f"MNIST/raw/{split}-labels-idx1-ubyte", np.arange(count) % 10)
    data = open_data("torchvision/MNIST", root=str(tmp_path))
    assert data.class_names[3] == "3 - three" and [len(p) for p in (data.train, data.val, data.test)] == [18, 2, 5]
    assert data.test.items.shape == (5, 3, 28, 28) and np.array_equal(data.test.items[4, 1], pixels[4])


def test_torchvision_set_of_files(tmp_path) -> None:
    class_folders(tmp_path / "eurosat/2750", {"Forest": 10, "River": 10})
    picture(tmp_path / "eurosat/2750/River/bad.jpg").write_bytes(b"no")
    data = open_data("torchvision/EuroSAT", root=str(tmp_path), seed=1)
    assert data.class_names == ("Forest", "River") and [len(p) for p in (data.train, data.val, data.test)] == [13, 4, 4]
    both = data.train + data.val + data.test
    decoded = decode(both, 8, on_bad_image="skip", cache_dir=tmp_path / "cache")
    assert len(decoded) == 20 and len(decoded.skipped) == 1 and "cannot identify" in decoded.skipped[0][1]


def test_torchvision_set_that_is_not_there(tmp_path) -> None:
    with pytest.raises(DataError, match="torchvision/CIFAR10 cannot be read from .*download=true"):
        open_data("torchvision/CIFAR10", root=str(tmp_path))
    with pytest.raises(DataError, match="torchvision/ImageNet cannot be read from"):
        open_data("torchvision/ImageNet", root=str(tmp_path))


@pytest.mark.parametrize("name", NAMES)
def test_every_torchvision_name_is_a_class_that_knows_its_splits(name, tmp_path) -> None:
    with pytest.raises(DataError, match=f"{name} cannot be read from"):
        open_data(name, root=str(tmp_path))
