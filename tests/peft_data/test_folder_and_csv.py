"""Class folders, split folders and tables."""

import pytest
import torch
from peft_data import DataError, open_data

from tests.peft_data.drawn import class_folders, picture


def test_class_folders_are_split_by_the_seed(tmp_path) -> None:
    class_folders(tmp_path / "photos", {"cat": 10, "dog": 20})
    (tmp_path / "photos/.hidden").mkdir()
    (tmp_path / "photos/cat/Thumbs.db").write_text("x", encoding="utf-8")
    picture(tmp_path / "photos/dog/deeper/x.PNG")
    data = open_data(str(tmp_path / "photos"), seed=1)
    assert data.name == "photos" and data.class_names == ("cat", "dog") and data.recipe is None
    assert [len(part) for part in (data.train, data.val, data.test)] == [19, 6, 6]
    assert [part.labels.bincount().tolist() for part in (data.val, data.test)] == [[2, 4], [2, 4]]
    names = [part.name(i) for part in (data.train, data.val, data.test) for i in range(len(part))]
    assert len(set(names)) == 31 and "dog/deeper/x.PNG" in names
    assert open_data(str(tmp_path / "photos"), seed=1).train.items == data.train.items
    assert open_data(str(tmp_path / "photos"), seed=2).train.items != data.train.items
    assert len(open_data(str(tmp_path / "photos"), val=0.0, test=0.5).val) == 0
    with pytest.raises(DataError, match="leave something to train on"):
        open_data(str(tmp_path / "photos"), val=0.5, test=0.5)


def test_split_folders(tmp_path) -> None:
    class_folders(tmp_path / "p/train", {"cat": 20, "dog": 20})
    class_folders(tmp_path / "p/test", {"dog": 3})
    data = open_data(str(tmp_path / "p"))
    assert [len(part) for part in (data.train, data.val, data.test)] == [36, 4, 3]
    assert data.val.labels.bincount().tolist() == [2, 2] and data.test.labels.tolist() == [1, 1, 1]
    assert data.test.name(0) == "test/dog/0.jpg"
    class_folders(tmp_path / "p/valid", {"cat": 2, "dog": 1})
    data = open_data(str(tmp_path / "p"))
    assert (len(data.train), len(data.val), len(data.test), data.notes) == (40, 3, 3, ())


@pytest.mark.parametrize(("maps", "task"), [("masks", "segment"), ("Depths", "depth")])
def test_pictures_beside_their_maps_are_told(maps: str, task: str, tmp_path) -> None:
    class_folders(tmp_path / "scans", {"images": 5, maps: 5})
    assert f"--task {task}" in open_data(str(tmp_path / "scans")).notes[0]


def test_val_is_the_test_set_where_there_is_none(tmp_path) -> None:
    class_folders(tmp_path / "p/train", {"cat": 20, "dog": 20})
    class_folders(tmp_path / "p/val", {"cat": 2, "dog": 1})
    data = open_data(str(tmp_path / "p"))
    assert [len(part) for part in (data.train, data.val, data.test)] == [36, 4, 3]
    assert "its val folder is the test set" in data.notes[0]


@pytest.mark.parametrize(
    ("counts", "says"),
    [
        ({"cat": 3, "dog": 0}, "dog is a class folder without pictures"),
        ({"cat": 0, "dog": 0}, "cat, .*dog are class folders without pictures"),
        ({"cat": 3}, "one class: a classifier needs two"),
        ({}, "no folder: put the pictures of each class into a folder"),
    ],
)
def test_folders_that_are_wrong(tmp_path, counts, says) -> None:
    (tmp_path / "p").mkdir()
    for name in counts:
        (tmp_path / "p" / name).mkdir()
    class_folders(tmp_path / "p", counts)
    with pytest.raises(DataError, match=says):
        open_data(str(tmp_path / "p"))


def test_pictures_without_folders_and_odd_classes(tmp_path) -> None:
    picture(tmp_path / "flat/1.jpg")
    with pytest.raises(DataError, match="pictures but no folder"):
        open_data(str(tmp_path / "flat"))
    class_folders(tmp_path / "p/train", {"cat": 2, "dog": 2})
    class_folders(tmp_path / "p/test", {"dogs": 2})
    with pytest.raises(DataError, match=r"dogs is a class that train has not \(did you mean 'dog'\?\)"):
        open_data(str(tmp_path / "p"))


def table(tmp_path, text: str):
    for i in range(10):
        picture(tmp_path / f"img/{i}.png", seed=i)
    (tmp_path / "t.csv").write_text(text, encoding="utf-8-sig")
    return str(tmp_path / "t.csv")


def test_csv_with_words_and_splits(tmp_path) -> None:
    rows = "".join(f"img/{i}.png, {'dog' if i % 2 else 'cat'},{'test' if i > 6 else 'Train'}\n" for i in range(10))
    data = open_data(table(tmp_path, "path,label,split\n" + rows))
    assert data.name == "t" and data.class_names == ("cat", "dog")
    assert [len(part) for part in (data.train, data.val, data.test)] == [7, 0, 3]
    assert data.test.name(0) == "img/7.png" and data.test.labels.tolist() == [1, 0, 1]


def test_csv_with_numbers(tmp_path) -> None:
    path = table(tmp_path, "file,y\n" + "".join(f"img/{i}.png,{[2, 10][i % 2]}\n" for i in range(10)))
    data = open_data(path, path_column="file", label_column="y")
    assert data.class_names == ("2", "10")
    assert [len(part) for part in (data.train, data.val, data.test)] == [6, 2, 2]
    assert torch.equal(open_data(path, path_column="file", label_column="y").test.labels, data.test.labels)
    assert len(open_data(path, path_column="file", label_column="y", test=0.5).test) == 5


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("img/0.png,cat\n", r"no column 'path'.*first line must be path,label"),
        ("path,lable\nimg/0.png,cat\n", r"no column 'label' \(did you mean 'lable'\?\)"),
        ("path,label\n", "lists no picture"),
        ("path,label\nimg/0.png,cat\nimg/1.png\n", "line 3 of .* has no label"),
        ("path,label\nimg/0.png,cat\n,dog\n", "line 3 of .* has no path"),
        ("path,label,split\nimg/0.png,cat,trian\n", r"line 2 .* split 'trian' \(did you mean 'train'\?\)"),
        ("path,label\nimg/0.png,cat\nimg/1.png,cat\n", "one class"),
        ("path,label\nx/0.png,cat\nimg/1.png,dog\ny/2.png,cat\n", r"2 pictures .*\n.*x/0.png\n.*y/2.png"),
    ],
)
def test_tables_that_are_wrong(tmp_path, text, says) -> None:
    with pytest.raises(DataError, match=says):
        open_data(table(tmp_path, text))


def test_a_table_that_is_no_text(tmp_path) -> None:
    (tmp_path / "t.csv").write_bytes(b"\xff\xfe\x00\x80")
    with pytest.raises(DataError, match="cannot be read as a table"):
        open_data(str(tmp_path / "t.csv"))
