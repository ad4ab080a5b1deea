"""Opening data by name and path, and what is said of wrong names, options and paths."""

import re

import pytest
import torch
from peft_data import ClassificationData, DataError, Pictures, list_data, open_data
from peft_data.base import no_pictures

from tests.peft_data.drawn import class_folders, vtab_task


def test_every_name_has_one_line() -> None:
    names = list_data()
    assert sum(name.startswith("vtab/") for name in names) == 19
    assert sum(name.startswith("fgvc/") for name in names) == 5
    assert sum(name.startswith("few_shot/") for name in names) == 5
    assert {"digits", "hf/<repo>", "torchvision/CIFAR10", "vtab/cifar100"} <= set(names)
    assert all(line and "\n" not in line for line in names.values())


def test_digits() -> None:
    data = open_data("digits", seed=3)
    assert (len(data.train), len(data.val), len(data.test)) == (800, 200, 797)
    assert data.recipe == "digits" and data.class_names == tuple("0123456789")
    assert data.train.items.shape == (800, 3, 8, 8) and data.train.items.dtype == torch.uint8
    assert data.train.items.max() == 255 and (data.train.items[:, 0] == data.train.items[:, 2]).all()
    counts = torch.stack([part.labels.bincount() / len(part) for part in (data.train, data.val, data.test)])
    assert (counts[0] - counts[1:]).abs().max() < 0.01
    again, other = open_data("digits", seed=3), open_data("digits", seed=4)
    assert torch.equal(data.test.items, again.test.items) and not torch.equal(data.test.items, other.test.items)
    names = {part.name(i) for part in (data.train, data.val, data.test) for i in range(len(part))}
    assert len(names) == 1797 and "digits/000000" in names


def test_a_name_wins_over_a_path_unless_forced(tmp_path, monkeypatch) -> None:
    class_folders(tmp_path / "digits", {"a": 5, "b": 5})
    monkeypatch.chdir(tmp_path)
    assert open_data("digits").class_names == tuple("0123456789")
    assert open_data("./digits").class_names == ("a", "b")
    assert open_data(str(tmp_path / "digits")).name == "digits"
    assert open_data("photos", root=str(class_folders(tmp_path / "x/photos", {"c": 5, "d": 5}).parent)).name == "photos"


@pytest.mark.parametrize(
    ("data", "says"),
    [
        ("digit", "did you mean 'digits'"),
        ("vtab/cifar1000", "did you mean 'vtab/cifar100'"),
        ("VTAB/DTD", "did you mean 'vtab/dtd'"),
        ("./no_such_folder", "check the path"),
        ("vtab/cifar", r"train800\.txt"),
        ("fgvc/cub", r"train\.json"),
        ("few_shot/food101", "annotations/"),
        ("torchvision/CIFAR10", "root"),
    ],
)
def test_what_is_not_there(data: str, says: str) -> None:
    with pytest.raises(DataError, match=says) as caught:
        open_data(data)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("data", ["vtab/svhn", "fgvc/dogs", "few_shot/oxford-pets"])
def test_a_missing_folder_says_how_to_get_the_data(data: str, tmp_path) -> None:
    with pytest.raises(DataError, match=rf"is not in {re.escape(str(tmp_path))}.*(get|take|make)"):
        open_data(data, root=str(tmp_path))


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"shot": 4}, r"no option 'shot' \(did you mean 'shots'\?\): its options are shots, list_seed"),
        ({"shots": "four"}, "must be int, not 'four'"),
        ({"shots": True}, "must be int, not True"),
    ],
)
def test_wrong_options(options: dict, says: str) -> None:
    with pytest.raises(DataError, match=says):
        open_data("few_shot/food101", **options)
    with pytest.raises(DataError, match="no option 'size': it has none"):
        open_data("digits", size=3)


@pytest.mark.parametrize("data", ["digits", "world/count", "world/open/objects", "world/motion/shape"])
def test_a_root_that_a_set_has_no_use_for(data: str, tmp_path) -> None:
    with pytest.raises(DataError, match=f"{data} lies in no folder: leave the root {re.escape(str(tmp_path))} out"):
        open_data(data, root=str(tmp_path))


def test_a_root_beside_a_whole_path(tmp_path) -> None:
    with pytest.raises(DataError, match="is a whole path, to which the root elsewhere adds nothing"):
        open_data(str(tmp_path), root="elsewhere")


def test_a_file_of_no_format(tmp_path) -> None:
    (tmp_path / "notes.md").write_text("hello", encoding="utf-8")
    with pytest.raises(DataError, match="no data set of a known format"):
        open_data(str(tmp_path / "notes.md"))


def test_each_path_has_one_format(tmp_path) -> None:
    import importlib
    import pkgutil

    import peft_data

    vtab_task(tmp_path / "task")
    class_folders(tmp_path / "photos", {"a": 1, "b": 1})
    (tmp_path / "cub").mkdir()
    (tmp_path / "cub/train.json").write_text("{}", encoding="utf-8")
    (tmp_path / "table.csv").write_text("path,label\n", encoding="utf-8")
    (tmp_path / "pets/annotations").mkdir(parents=True)
    (tmp_path / "pets/annotations/train_meta.list.num_shot_1.seed_0").write_text("", encoding="utf-8")
    (tmp_path / "saved").mkdir()
    (tmp_path / "saved/dataset_dict.json").write_text("{}", encoding="utf-8")
    names = [info.name for info in pkgutil.iter_modules(peft_data.__path__)]
    formats = [module for name in names if hasattr(module := importlib.import_module(f"peft_data.{name}"), "claims")]
    want = dict(task="vtab", photos="folder", cub="fgvc", pets="few_shot", saved="huggingface")
    for path, name in {**want, "table.csv": "csv"}.items():
        assert [m.__name__ for m in formats if m.claims(tmp_path / path)] == [f"peft_data.{name}"]


def test_pictures_keep_their_names() -> None:
    images = torch.arange(5, dtype=torch.uint8)[:, None, None, None].expand(5, 3, 2, 2)
    one = Pictures(images, torch.arange(5), split="train")
    some = one.subset([3, 1])
    assert [some.name(i) for i in range(2)] == ["train/000003", "train/000001"] and some.items[0, 0, 0, 0] == 3
    both = some + one.subset([0])
    assert [both.name(i) for i in range(3)] == ["train/000003", "train/000001", "train/000000"]
    assert both.labels.tolist() == [3, 1, 0]
    assert (no_pictures() + one) is one and (one + no_pictures()) is one


def test_wrong_data_is_refused() -> None:
    one = Pictures(torch.zeros(3, 3, 2, 2, dtype=torch.uint8), torch.tensor([0, 1, 2]))
    none = no_pictures()
    with pytest.raises(DataError, match="one class: a classifier needs two"):
        ClassificationData("x", ("a",), one, none, none)
    with pytest.raises(DataError, match="label 2 in test: labels must be 0 to 1"):
        ClassificationData("x", ("a", "b"), one.subset([0, 1]), none, one)
    with pytest.raises(DataError, match="no training pictures"):
        ClassificationData("x", ("a", "b", "c"), none, none, one)
    with pytest.raises(DataError, match="one label a picture"):
        Pictures(one.items, torch.zeros(2, dtype=torch.int64))
    with pytest.raises(DataError, match="uint8 N 3 H W"):
        Pictures(torch.zeros(3, 1, 2, 2), one.labels)
