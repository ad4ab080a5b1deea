"""What is odd about a user's data and is told in its notes."""

import shutil
from pathlib import Path

import pytest
from peft_data import DataError, open_data
from peft_data.findings import alike

from tests.peft_data.drawn import class_folders, picture


def test_names_that_read_alike() -> None:
    names = ["Apple", "apple", "M&amp;M", "M&M", "Blue_Ball", "blue ball", "C", "C++", "C#", "ﬁsh", "fish"]
    assert alike(names) == [("Apple", "apple"), ("M&amp;M", "M&M"), ("Blue_Ball", "blue ball"), ("ﬁsh", "fish")]
    assert alike(["missile", "missile"]) == []


def test_folders_that_read_alike_are_told_and_keep_their_names(tmp_path: Path) -> None:
    class_folders(tmp_path / "p", {"Blue_Ball": 5, "Blue Ball": 5, "red": 5})
    data = open_data(str(tmp_path / "p"))
    assert data.class_names == ("Blue Ball", "Blue_Ball", "red")
    assert "'Blue Ball' and 'Blue_Ball'" in data.notes[0] and "read alike" in data.notes[0]


def test_the_same_picture_twice(tmp_path: Path) -> None:
    class_folders(tmp_path / "p", {"train/cat": 5, "train/dog": 5, "test/cat": 3, "test/dog": 3})
    assert all("twice" not in note and "both" not in note for note in open_data(str(tmp_path / "p")).notes)
    shutil.copy(tmp_path / "p/train/cat/1.jpg", tmp_path / "p/test/cat/copy.jpg")
    shutil.copy(tmp_path / "p/train/cat/2.jpg", tmp_path / "p/train/dog/copy.jpg")
    crossing, two = open_data(str(tmp_path / "p")).notes[-2:]
    assert "one picture is both in what is trained on and in test" in crossing
    assert "test/cat/copy.jpg is train/cat/1.jpg" in crossing
    assert "one picture has two classes: train/cat/2.jpg is cat and train/dog/copy.jpg dog" in two


def test_files_of_one_size_with_other_bytes_are_not_the_same(tmp_path: Path) -> None:
    for seed in range(8):
        picture(tmp_path / f"p/{'ab'[seed % 2]}/{seed}.bmp", seed)
    assert len({path.stat().st_size for path in tmp_path.rglob("*.bmp")}) == 1
    assert open_data(str(tmp_path / "p")).notes == ()


def test_a_table_with_a_picture_twice(tmp_path: Path) -> None:
    class_folders(tmp_path, {"cat": 4, "dog": 4})
    rows = [f"{c}/{i}.jpg,{c},train" for c in ("cat", "dog") for i in range(4)]
    (tmp_path / "t.csv").write_text(
        "\n".join(["path,label,split", *rows, "cat/0.jpg,dog,test", "dog/1.jpg,dog,test"]), encoding="utf-8"
    )
    notes = " ".join(open_data(str(tmp_path / "t.csv")).notes)
    assert "2 pictures are both in what is trained on and in test" in notes
    assert "cat/0.jpg is cat and cat/0.jpg dog" in notes


def test_a_class_that_is_tested_and_never_trained(tmp_path: Path) -> None:
    class_folders(tmp_path, {"cat": 4, "dog": 4, "dogs": 1})
    rows = [f"{c}/{i}.jpg;{c};Training" for c in ("cat", "dog") for i in range(4)]
    (tmp_path / "t.csv").write_text("\n".join(["path;label;split", *rows, "dogs/0.jpg;dogs;TEST"]), encoding="utf-8")
    with pytest.raises(DataError, match=r"class 'dogs' in val or test, which train has not \(did you mean 'dog'\?\)"):
        open_data(str(tmp_path / "t.csv"))


def test_classes_that_are_too_small_to_be_split(tmp_path: Path) -> None:
    class_folders(tmp_path / "p", {name: 1 for name in "abcdefgh"} | {"z": 10})
    data = open_data(str(tmp_path / "p"))
    assert data.train.labels.bincount().tolist() == [1] * 8 + [6]
    assert "val has none of the pictures of 8 of 9 classes, which have too few: a, b, c, d and 4 more" in data.notes[0]
