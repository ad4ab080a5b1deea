"""Sets of labels and numbers from tables, lists, COCO's and VOC's annotations."""

import json
from pathlib import Path

import pytest
import torch
from peft_data import DataError, open_data
from peft_data.splits import strata
from PIL import Image


def pictures(folder: Path, count: int) -> list[str]:
    folder.mkdir(parents=True, exist_ok=True)
    for row in range(count):
        Image.new("RGB", (8, 8), (row, 10 * row, 0)).save(folder / f"{row}.png")
    return [f"{row}.png" for row in range(count)]


def write(path: Path, *lines: str) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return str(path)


def test_a_column_a_label(tmp_path: Path) -> None:
    names = pictures(tmp_path, 20)
    rows = [
        f"{name},{row % 2},{'' if row == 3 else int(row < 5)},{'test' if row > 15 else 'train'}"
        for row, name in enumerate(names)
    ]
    data = open_data(write(tmp_path / "a.csv", "path,odd,small,split", *rows), task="multi_label")
    assert data.class_names == ("odd", "small") and data.recipe == "multi_label"
    assert [len(part) for part in (data.train, data.val, data.test)] == [14, 2, 4]
    both = data.train + data.val
    labels = {both.name(row): both.labels[row].tolist() for row in range(len(both))}
    assert labels["3.png"] == [1, -1] and labels["4.png"] == [0, 1] and both.labels.dtype == torch.int8
    assert data.summary.startswith("20 pictures of 2 labels: 14 to train")
    assert data.said([1, 1]) == "odd, small" and data.said([0, -1]) == "nothing"


def test_labels_in_one_column_and_lists_give_the_same(tmp_path: Path) -> None:
    names, words = pictures(tmp_path, 12), (["b"], ["a", "b"], [], ["c"])
    table = write(
        tmp_path / "a.csv", "path,labels", *(f"{name},{'; '.join(words[row % 4])}" for row, name in enumerate(names))
    )
    lists = write(tmp_path / "list.txt", *(",".join([name, *words[row % 4]]) for row, name in enumerate(names)))
    one, other = (open_data(path, task="multi_label") for path in (table, lists))
    assert one.class_names == other.class_names == ("a", "b", "c")
    for split in ("train", "val", "test"):
        assert torch.equal(getattr(one, split).labels, getattr(other, split).labels)
    write(tmp_path / "lists" / "train.txt", *(f"../{name},{'ab'[row % 2]}" for row, name in enumerate(names[:8])))
    write(tmp_path / "lists" / "test.txt", *(f"../{name}" for name in names[8:]))
    folder = open_data(str(tmp_path / "lists"), task="multi_label")
    assert len(folder.test) == 4 and not folder.test.labels.any() and folder.class_names == ("a", "b")


def coco(path: Path, names: list[str], things: list[tuple[int, int, int]]) -> None:
    content = {
        "images": [{"id": row + 5, "file_name": name, "width": 8, "height": 8} for row, name in enumerate(names)],
        "categories": [{"id": 7, "name": "cat"}, {"id": 3, "name": "dog"}, {"id": 9, "name": "unseen"}],
        "annotations": [{"id": number, "image_id": row + 5, "category_id": kind, "bbox": [1, 1, 4, 4], "iscrowd": crowd}
                        for number, (row, kind, crowd) in enumerate(things)],
    }  # fmt: skip
    write(path, json.dumps(content))


def test_what_coco_and_voc_have_boxes_of(tmp_path: Path) -> None:
    for split in ("train2017", "val2017"):
        names = pictures(tmp_path / "coco" / split, 3)
        coco(tmp_path / "coco" / "annotations" / f"instances_{split}.json", names, [(0, 7, 0), (1, 3, 0), (1, 7, 1)])
    data = open_data(str(tmp_path / "coco"), task="multi_label")
    assert data.class_names == ("cat", "dog")
    assert data.test.labels.tolist() == [[1, 0], [-1, 1], [0, 0]]  # a crowd alone is not known
    assert "val is the test set" in " ".join(data.notes)
    for name in pictures(tmp_path / "voc" / "JPEGImages", 3):
        stem = Path(name).stem
        kind, hard = ("cat", 0) if stem == "0" else ("dog", int(stem == "2"))
        box = "<bndbox><xmin>1</xmin><ymin>1</ymin><xmax>4</xmax><ymax>4</ymax></bndbox>"
        write(tmp_path / "voc" / "Annotations" / f"{stem}.xml",
              f"<annotation><object><name>{kind}</name><difficult>{hard}</difficult>{box}</object></annotation>")  # fmt: skip
    write(tmp_path / "voc" / "ImageSets" / "Main" / "train.txt", "0", "1")
    write(tmp_path / "voc" / "ImageSets" / "Main" / "val.txt", "2")
    data = open_data(str(tmp_path / "voc"), task="multi_label")
    assert data.class_names == ("cat", "dog") and data.train.labels.tolist() == [[1, 0], [0, 1]]
    assert data.test.labels.tolist() == [[0, -1]]


def test_numbers(tmp_path: Path) -> None:
    names = pictures(tmp_path, 10)
    table = write(tmp_path / "a.csv", "path,height", *(f"{name},{row / 4}" for row, name in enumerate(names)))
    data = open_data(table, task="regression", target_column="height")
    assert data.class_names == ("height",) and data.train.labels.dtype == torch.float32
    assert "of height from" in data.summary and data.said(0.25) == "height 0.25"


def test_sets_are_split_by_their_rarest_label() -> None:
    labels = torch.tensor([[1, 1], [1, 0], [1, -1], [0, 0]])
    assert strata(labels).tolist() == [1, 0, 0, 2]
    assert strata(torch.rand(4)).tolist() == [0] * 4


@pytest.mark.parametrize(
    ("task", "lines", "says"),
    [
        ("multi_label", ("path,a,b", "0.png,1,2"), "line 2 of .* has '2' under 'b'"),
        ("multi_label", ("picture,a", "0.png,1"), "no column 'path'"),
        ("multi_label", ("path,a", "9.png,1"), "one picture is listed"),
        ("multi_label", ("path,a", ",1"), "line 2 of .* has no path"),
        ("multi_label", ("path", "0.png"), "has no label"),
        ("multi_label", ("path,a,b", "0.png,1,0", "1.png,1,1", "2.png,1,0"), "every picture to train on has these labels"),
        ("regression", ("path,target", "0.png,one"), "line 2 of .* has the target 'one'"),
        ("regression", ("path,target", "0.png,inf"), "give a finite number"),
        ("regression", ("path,target", "0.png,1", "1.png,1", "2.png,1"), "there is nothing to learn"),
        ("regresion", ("path,target", "0.png,1"), r"there is no task 'regresion' \(did you mean 'regression'\?\)"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said(task: str, lines: tuple[str, ...], says: str, tmp_path: Path) -> None:
    pictures(tmp_path, 3)
    with pytest.raises(DataError, match=says):
        open_data(write(tmp_path / "a.csv", *lines), task=task)


def test_damaged_annotations_are_told(tmp_path: Path) -> None:
    names = pictures(tmp_path, 2)
    coco(tmp_path / "a.json", names, [(0, 8, 0)])
    with pytest.raises(DataError, match="the category 8, which it does not list"):
        open_data(str(tmp_path / "a.json"), task="multi_label")
    write(tmp_path / "b.json", "[]")
    with pytest.raises(DataError, match="is no COCO file"):
        open_data(str(tmp_path / "b.json"), task="multi_label")
    with pytest.raises(DataError, match="give a .csv file with the columns path and target"):
        open_data(str(tmp_path), task="regression")
