"""CoOp's eleven data sets and ImageNet's variants in their published folders."""

import json
from pathlib import Path

import pytest
from peft_data import DataError, list_data, open_data

from tests.peft_data.drawn import picture

PETS = {"train": ["a_1", "b_1", "a_2", "b_2"], "val": ["b_3"], "test": ["a_4", "b_4"]}


def split_file(content: dict[str, list[str]]) -> str:
    def triple(name: str) -> list:
        return [f"{name}.jpg", "ab".index(name[0]), {"a": "abyssinian", "b": "american_bulldog"}[name[0]]]

    return json.dumps({split: [triple(name) for name in names] for split, names in content.items()})


@pytest.fixture
def pets(tmp_path: Path) -> Path:
    for names in PETS.values():
        for name in names:
            picture(tmp_path / f"oxford_pets/images/{name}.jpg")
    (tmp_path / "oxford_pets/split_zhou_OxfordPets.json").write_text(split_file(PETS), encoding="utf-8")
    return tmp_path


def test_every_set_has_a_name() -> None:
    names = [name for name in list_data() if name.startswith("coop/")]
    assert len(names) == 15 and "coop/fgvc_aircraft" in names and "coop/imagenet_sketch" in names


def test_splits_are_those_of_the_file(pets: Path) -> None:
    for root in (pets, pets / "oxford_pets"):
        data = open_data("coop/oxford_pets", root=str(root))
        assert data.class_names == ("abyssinian", "american_bulldog")
        assert data.train.labels.tolist() == [0, 1, 0, 1] and data.train.name(2) == "a_2.jpg"
        assert (len(data.val), data.test.labels.tolist()) == (1, [0, 1])
    assert data.notes[0] == "coop/oxford_pets: 4 pictures in train, published are 2944"
    assert data.notes[-1] == "coop/oxford_pets: 2 classes, published are 37"
    by_path = open_data(str(pets / "oxford_pets"))
    assert by_path.class_names == data.class_names and not by_path.notes and by_path.name == "oxford_pets"


def test_missing_pictures_are_all_listed(pets: Path) -> None:
    for name in ("a_2", "b_4"):
        (pets / f"oxford_pets/images/{name}.jpg").unlink()
    with pytest.raises(DataError, match=r"2 pictures are listed in .*OxfordPets\.json but not there.*\n.*a_2.*\n.*b_4"):
        open_data("coop/oxford_pets", root=str(pets))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[]", "cannot be read .*it must be"),
        ("{", "cannot be read .*it must be"),
        ('{"train": [["a_1.jpg", 0]], "val": [], "test": []}', "cannot be read .*it must be"),
        ('{"train": [["a_1.jpg", 0, "a"], ["b_1.jpg", 0, "b"]], "val": [], "test": []}', "class 0 both 'a' and 'b'"),
        ('{"train": [["a_1.jpg", 0, "a"], ["b_1.jpg", 2, "b"]], "val": [], "test": []}', "has the labels 0, 2 …"),
    ],
)
def test_split_files_of_another_form(pets: Path, text: str, says: str) -> None:
    (pets / "oxford_pets/split_zhou_OxfordPets.json").write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match=says):
        open_data("coop/oxford_pets", root=str(pets))


def test_missing_folders(pets: Path) -> None:
    with pytest.raises(DataError, match="coop/dtd needs root, the folder that holds dtd/"):
        open_data("coop/dtd")
    with pytest.raises(DataError, match="coop/dtd is not in .*, which has no folder dtd: make it as DATASETS.md"):
        open_data("coop/dtd", root=str(pets))
    (pets / "oxford_pets/split_zhou_OxfordPets.json").unlink()
    with pytest.raises(DataError, match="coop/oxford_pets needs .*split_zhou_OxfordPets.json: make the folder"):
        open_data("coop/oxford_pets", root=str(pets))


def test_aircraft(tmp_path: Path) -> None:
    folder = tmp_path / "fgvc_aircraft"
    for number in ("01", "02", "03", "04"):
        picture(folder / f"images/{number}.jpg")
    (folder / "variants.txt").write_text("707-320\nDC-10\n", encoding="utf-8")
    (folder / "images_variant_train.txt").write_text("01 707-320\n02 DC-10\n", encoding="utf-8")
    (folder / "images_variant_val.txt").write_text("03 DC-10\n", encoding="utf-8")
    (folder / "images_variant_test.txt").write_text("04 707-320\n", encoding="utf-8")
    data = open_data("coop/fgvc_aircraft", root=str(tmp_path))
    assert data.class_names == ("707-320", "DC-10") and data.train.labels.tolist() == [0, 1]
    assert data.val.labels.tolist() == [1] and data.test.name(0) == "04.jpg"
    (folder / "images_variant_val.txt").write_text("03 DC-9\n", encoding="utf-8")
    with pytest.raises(DataError, match="gives 03 the class 'DC-9', which variants.txt has not"):
        open_data("coop/fgvc_aircraft", root=str(tmp_path))


def test_imagenet_and_its_variants(tmp_path: Path) -> None:
    words = {"n01": "tench", "n02": "goldfish", "n03": "great white shark"}
    table = "".join(f"{word} {name}\n" for word, name in reversed(words.items()))
    for word in words:
        picture(tmp_path / f"imagenet/images/train/{word}/x.JPEG")
        picture(tmp_path / f"imagenet/images/val/{word}/y.JPEG")
    (tmp_path / "imagenet/classnames.txt").write_text(table, encoding="utf-8")
    data = open_data("coop/imagenet", root=str(tmp_path))
    assert data.class_names == tuple(words.values()) and (len(data.train), len(data.val), len(data.test)) == (3, 0, 3)

    for label in range(3):
        picture(tmp_path / f"imagenetv2/imagenetv2-matched-frequency-format-val/{label}/z.jpeg")
    v2 = open_data("coop/imagenetv2", root=str(tmp_path))
    assert v2.class_names == data.class_names and v2.test.labels.tolist() == [0, 1, 2] and not len(v2.train)

    for word in ("n03", "n01"):
        picture(tmp_path / f"imagenet-adversarial/imagenet-a/{word}/z.jpg")
    hard = open_data("coop/imagenet_a", root=str(tmp_path))
    assert hard.class_names == ("tench", "great white shark") and hard.test.labels.tolist() == [0, 1]
    assert "coop/imagenet_a: 2 classes, published are 200" in hard.notes

    (tmp_path / "imagenet/images/val/n02/y.JPEG").unlink()
    (tmp_path / "imagenet/images/val/n02").rmdir()
    with pytest.raises(DataError, match="images/val has no folder n02: make it"):
        open_data("coop/imagenet", root=str(tmp_path))
