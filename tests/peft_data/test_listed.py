"""VTAB-1k, few-shot lists and FGVC json files."""

import json

import pytest
from peft_data import DataError, open_data
from peft_data.lists import known_names
from peft_data.vtab import TASKS

from tests.peft_data.drawn import listed_pictures, picture, vtab_task


@pytest.mark.parametrize("folder", ["cifar", "cifar100"])
@pytest.mark.parametrize("name", ["vtab/cifar", "vtab/cifar100"])
def test_both_spellings(tmp_path, folder, name) -> None:
    vtab_task(tmp_path / folder)
    data = open_data(name, root=str(tmp_path))
    assert data.name == "vtab/cifar100" and data.recipe == "vtab" and data.class_names[0] == "apple"
    assert [len(part) for part in (data.train, data.val, data.test)] == [8, 4, 6]
    assert data.train.name(0) == "images/train800/000000.jpg" and data.train.labels.tolist() == [0, 1, 2, 3] * 2
    assert data.notes == (
        "vtab/cifar100: 8 pictures in train800, published are 800",
        "vtab/cifar100: 4 pictures in val200, published are 200",
        "vtab/cifar100: 6 pictures in test, published are 10000",
        "vtab/cifar100: 4 classes have pictures, published are 100",
    )


def test_the_published_table() -> None:
    assert len(TASKS) == 19 and sum(test for _, _, test in TASKS.values()) == 387904
    for task, names in known_names().items():
        assert len(names) == len(set(names)) == TASKS[task][1]


def test_no_note_on_published_sizes(tmp_path) -> None:
    one = picture(tmp_path / "kitti/images/one.jpg")
    for split, size in (("train800", 800), ("val200", 200), ("test", 711)):
        (tmp_path / f"kitti/{split}.txt").write_text(
            "".join(f"images/{one.name} {i % 4}\n" for i in range(size)), encoding="utf-8"
        )
    data = open_data("vtab/kitti", root=str(tmp_path))
    assert data.notes == () and len(data.train + data.val) == 1000 and len(data.test) == 711


def test_a_task_by_its_path_and_the_joint_list(tmp_path) -> None:
    task = vtab_task(tmp_path / "mine")
    assert open_data(str(task)).name == "vtab/mine"
    assert open_data(str(task)).class_names == ("class 0", "class 1", "class 2", "class 3")
    (task / "train800.txt").unlink()
    listed_pictures(task, "train800val200.txt", "images/train800val200", [0, 1] * 403)
    data = open_data(str(task))
    assert (len(data.train), len(data.val)) == (800, 6)
    (task / "test.txt").unlink()
    with pytest.raises(DataError, match="test.txt is missing"):
        open_data(str(task))


def test_a_folder_of_tasks_is_no_data_set(tmp_path) -> None:
    vtab_task(tmp_path / "dtd")
    with pytest.raises(DataError, match="holds data sets, not classes: open one of them, such as .*dtd"):
        open_data(str(tmp_path))


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("images/val200/000000.jpg", "line 2 of .*val200.txt has no label"),
        ("images/val200/000000.jpg cat", "line 2 of .* the label 'cat': labels must be whole numbers"),
        ("images/val200/000000.jpg -1", "line 2 of .* the label '-1'"),
        ("images/val200/000000.jpg 4", "line 2 of .* the label 4: labels must be 0 to 3"),
        ("images/val200/x.jpg 1\nimages/y.jpg 0", r"2 pictures are listed in .*val200.txt .*\n.*x\.jpg\n.*y\.jpg"),
    ],
)
def test_lists_that_are_wrong(tmp_path, line, says) -> None:
    task = vtab_task(tmp_path / "kitti")
    (task / "val200.txt").write_text(f"images/val200/000000.jpg 1\n{line}\n", encoding="utf-8")
    with pytest.raises(DataError, match=says):
        open_data("vtab/kitti", root=str(tmp_path))
    (task / "val200.txt").write_text("\n", encoding="utf-8")
    with pytest.raises(DataError, match="lists no picture"):
        open_data("vtab/kitti", root=str(tmp_path))
    (task / "val200.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(DataError, match="cannot be read as a list"):
        open_data("vtab/kitti", root=str(tmp_path))


def few_shot(folder, shots=2):
    """Pictures in images/<class>/, named in the lists without images/."""
    lists = {f"train_meta.list.num_shot_{shots}.seed_0": shots, "val_meta.list": 1, "test_meta.list": 2}
    for name, per_class in lists.items():
        lines = []
        for label, word in enumerate(("apple_pie", "baby ribs", "baklava")):
            for i in range(per_class):
                picture(folder / f"images/{word}/{name[:3]}{i}.jpg")
                lines.append(f"{word}/{name[:3]}{i}.jpg {label}\n")
        (folder / "annotations").mkdir(exist_ok=True)
        (folder / "annotations" / name).write_text("".join(lines), encoding="utf-8")
    return folder


def test_few_shot_lists(tmp_path) -> None:
    few_shot(tmp_path / "mine")
    data = open_data(str(tmp_path / "mine"), shots=2)
    assert data.name == "few_shot/mine" and data.class_names == ("apple pie", "baby ribs", "baklava")
    assert [len(part) for part in (data.train, data.val, data.test)] == [6, 3, 6]
    assert data.train.name(2) == "images/baby ribs/tra0.jpg"
    with pytest.raises(DataError, match="mine has shots=2 with list_seed=0"):
        open_data(str(tmp_path / "mine"), shots=16)


def test_published_few_shot_sets_by_name(tmp_path) -> None:
    folder = few_shot(tmp_path / "standford-cars")
    path = folder / "annotations/train_meta.list.num_shot_2.seed_0"
    path.write_text(path.read_text(encoding="utf-8") * 2, encoding="utf-8")
    data = open_data("few_shot/stanford-cars", root=str(tmp_path), shots=2)
    assert data.name == "few_shot/stanford-cars" and len(data.class_names) == 196
    assert "6 lines" in data.notes[0]
    path.write_text("apple_pie/tra0.jpg 196\n", encoding="utf-8")
    with pytest.raises(DataError, match="labels must be 0 to 195"):
        open_data("few_shot/stanford-cars", root=str(tmp_path), shots=2)


def fgvc(folder, inside="images/", ids=(3, 7)):
    names = {ids[0]: "003.Sooty_Albatross", ids[1]: "007.Parakeet_Auklet"}
    for split, count in (("train", 20), ("test", 4)):
        entries = {}
        for i in range(count):
            entries[f"{names[ids[i % 2]]}/{split}{i}.jpg"] = ids[i % 2]
            picture(folder / inside / f"{names[ids[i % 2]]}/{split}{i}.jpg")
        (folder / f"{split}.json").write_text(json.dumps(entries), encoding="utf-8")
    return folder


def test_fgvc(tmp_path) -> None:
    fgvc(tmp_path / "CUB_200_2011")
    data = open_data("fgvc/cub", root=str(tmp_path), seed=5)
    assert data.name == "fgvc/cub" and data.recipe == "fgvc"
    assert data.class_names == ("Sooty Albatross", "Parakeet Auklet")
    assert [len(part) for part in (data.train, data.val, data.test)] == [18, 2, 4]
    assert data.val.labels.tolist() == [0, 1] or data.val.labels.tolist() == [1, 0]
    assert any("published are 5394" in note for note in data.notes)
    assert any("has no val: it is" in note for note in data.notes)
    assert open_data("fgvc/cub", root=str(tmp_path / "CUB_200_2011"), seed=5).val.items == data.val.items
    assert open_data(str(tmp_path / "CUB_200_2011"), seed=5).name == "fgvc/cub"


@pytest.mark.parametrize("inside", ["Images", ""])
def test_where_fgvc_pictures_lie(tmp_path, inside) -> None:
    fgvc(tmp_path / "birds", inside)
    assert len(open_data(str(tmp_path / "birds")).train) == 18
    (tmp_path / "birds/classes.txt").write_text("3 003.Sooty\n7 Parakeet (male)\n", encoding="utf-8")
    (tmp_path / "birds/val.json").write_text(
        (tmp_path / "birds/test.json").read_text(encoding="utf-8"), encoding="utf-8"
    )
    data = open_data(str(tmp_path / "birds"))
    assert data.class_names == ("Sooty", "Parakeet (male)")
    assert [len(part) for part in (data.train, data.val, data.test)] == [20, 4, 4]


@pytest.mark.parametrize(
    ("split", "text", "says"),
    [
        ("test", "[]", "is a list"),
        ("test", "{", "is no json file"),
        ("test", "{}", "test.json is missing or lists no picture"),
        ("test", '{"a.jpg": 4}', "class 4, which train.json has not"),
        ("test", '{"a.jpg": null}', "the class None: it must be a number or a word"),
        ("val", '{"a.jpg": 3, "b.jpg": 7}', r"2 pictures are listed in .*val.json .*\n.*a.jpg\n.*b.jpg"),
    ],
)
def test_fgvc_lists_that_are_wrong(tmp_path, split, text, says) -> None:
    fgvc(tmp_path / "birds")
    (tmp_path / f"birds/{split}.json").write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match=says):
        open_data(str(tmp_path / "birds"))
