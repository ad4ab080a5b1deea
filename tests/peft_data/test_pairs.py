"""Sets of pictures and captions: tables, folders, shards, Hugging Face's, the drawn one; and what their users do wrong."""

import io
import json
import tarfile
from pathlib import Path

import pytest
from peft_data.errors import DataError
from peft_data.pairs import open_pairs
from PIL import Image


def picture(path: Path, colour: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (6, 5), (colour, 10, 20)).save(path)
    return path


def text(path: Path, words: str) -> Path:
    path.write_text(words, encoding="utf-8")
    return path


def test_a_table_with_several_captions_a_picture(tmp_path: Path) -> None:
    for i in range(4):
        picture(tmp_path / f"img/{i}.png", i)
    lines = [
        "filepath\ttitle\tsplit",
        "img/0.png\ta cat\ttrain",
        "img/0.png\ttwo  cats\ttrain",
        "img/1.png\ta dog\ttrain",
    ]
    table = text(tmp_path / "c.tsv", "\n".join([*lines, "img/2.png\ta cow\tval", "img/3.png\ta hen\ttest"]))
    data = open_pairs(str(table))
    assert data.train.captions == (("a cat", "two cats"), ("a dog",)) and data.val.captions == (("a cow",),)
    assert data.train.pictures.items[1] == tmp_path / "img/1.png" and data.train.pictures.labels.tolist() == [0, 1]
    assert data.summary == "4 pictures with captions, 1.5 captions a picture: 2 to train, 1 to choose on, 1 to test"


def test_a_table_without_splits_is_drawn_by_the_seed(tmp_path: Path) -> None:
    for i in range(20):
        picture(tmp_path / f"{i}.png", i)
    table = text(tmp_path / "c.csv", "image,caption\n" + "\n".join(f"{i}.png,number {i}" for i in range(20)))
    one, same, other = (open_pairs(str(table), seed=seed) for seed in (1, 1, 2))
    assert (len(one.train), len(one.val), len(one.test)) == (16, 2, 2)
    assert one.test.captions == same.test.captions != other.test.captions
    for row, (caption,) in enumerate(one.train.captions):
        assert one.train.pictures.items[row].stem == caption.split()[1]


def test_a_folder_with_texts_beside(tmp_path: Path) -> None:
    picture(tmp_path / "a/1.jpg")
    text(tmp_path / "a/1.txt", "a cat\n\ntwo cats\n")
    picture(tmp_path / "a/2.jpg")
    text(tmp_path / "metadata.jsonl", json.dumps({"file_name": "a/2.jpg", "text": "a dog"}))
    data = open_pairs(str(tmp_path))
    assert data.train.captions == (("a cat", "two cats"), ("a dog",)) and data.notes == ()
    for split in ("train", "test"):
        for i in range(2):
            text(picture(tmp_path / f"s/{split}/{i}.png").with_suffix(".txt"), f"{split} {i}")
    data = open_pairs(str(tmp_path / "s"))
    assert data.train.captions == (("train 0",), ("train 1",)) and len(data.test) == 2 and not len(data.val)


def shard(path: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def png(colour: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (6, 5), (colour, 10, 20)).save(buffer, "PNG")
    return buffer.getvalue()


def test_shards_of_webdataset_are_read_where_they_lie(tmp_path: Path) -> None:
    shard(
        tmp_path / "s-00.tar", {"0.png": png(7), "0.txt": b"a cat", "1.png": png(8), "1.json": b'{"caption": "a dog"}'}
    )
    shard(tmp_path / "s-01.tar", {"2.png": png(9), "2.txt": b"a cow"})
    data = open_pairs(f"{tmp_path}/s-{{00..01}}.tar", val=0.0, test=0.0)
    assert data.train.captions == (("a cat",), ("a dog",), ("a cow",))
    assert [data.train.pictures.items[i].getpixel((0, 0))[0] for i in range(3)] == [7, 8, 9]
    assert data.train.pictures.name(2) == "s-01/2" and data.train.pictures.items.fingerprint
    assert len(open_pairs(str(tmp_path), val=0.0, test=0.0).train) == 3
    with pytest.raises(DataError, match="1 of 3 shards are not there"):
        open_pairs(f"{tmp_path}/s-{{00..02}}.tar")
    with pytest.raises(DataError, match="cannot be read as a shard"):
        open_pairs(str(text(tmp_path / "broken.tar", "no tar" * 200)))
    with pytest.raises(DataError, match="have no caption"):
        open_pairs(str(shard(tmp_path / "silent.tar", {"0.png": png(7)})))


def test_a_saved_hugging_face_data_set(tmp_path: Path) -> None:
    from datasets import Dataset, Features, Image as ImageFeature, Value  # noqa: I001

    rows = {
        "image": [str(picture(tmp_path / f"{i}.png", i)) for i in range(4)],
        "caption": [f"number {i}" for i in range(4)],
    }
    Dataset.from_dict(rows, Features({"image": ImageFeature(), "caption": Value("string")})).save_to_disk(
        str(tmp_path / "d")
    )
    data = open_pairs(f"hf/{tmp_path}/d", test=0.25, val=0.0)
    assert len(data.train) == 3 and len(data.test) == 1
    row = int(data.train.captions[1][0].split()[1])
    assert data.train.pictures.items[1].getpixel((0, 0))[0] == row


def test_the_drawn_pairs() -> None:
    data = open_pairs("world/pairs")
    assert (len(data.train), len(data.val), len(data.test)) == (2000, 500, 500)
    assert data.test.captions == open_pairs("world/pairs").test.captions
    assert all(own and all(own) for own in data.train.captions)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("path,label\na.png,cat\n", "none that is known to hold captions"),
        ("path,caption\na.png,\nb.png,x\n", r"1 lines of .* have no caption \(2\)"),
        ("path,caption\n,cat\n", "line 2 of .* has no path"),
        ("path,caption\na.png,cat\nz.png,dog\n", "one picture is listed .* but not there"),
        ("path,caption\na.png,cat\nb.png,cat\n", 'have the one caption "cat"'),
        ("path,caption\na.png,cat\n", "has one pair to train on"),
        ("path,caption,split\na.png,cat,trian\n", "did you mean 'train'"),
    ],
)
def test_what_is_wrong_with_a_table(content: str, words: str, tmp_path: Path) -> None:
    for name in ("a", "b"):
        picture(tmp_path / f"{name}.png")
    with pytest.raises(DataError, match=words):
        open_pairs(str(text(tmp_path / "c.csv", content)), val=0.0, test=0.0)


def test_what_is_wrong_with_a_folder_or_a_name(tmp_path: Path) -> None:
    picture(tmp_path / "p/1.png")
    with pytest.raises(DataError, match="no picture in .* has a caption"):
        open_pairs(str(tmp_path / "p"))
    picture(tmp_path / "p/2.png")
    text(tmp_path / "p/2.txt", "a cat")
    with pytest.raises(DataError, match="1 of 2 pictures have no caption"):
        open_pairs(str(tmp_path / "p"))
    with pytest.raises(DataError, match="did you mean 'world/pairs'|check the path"):
        open_pairs("world/pears")
    with pytest.raises(DataError, match="check the path"):
        open_pairs(f"{tmp_path}/none.csv")
    with pytest.raises(DataError, match="did you mean 'val'"):
        open_pairs(str(tmp_path / "p"), vall=0.1)
    with pytest.raises(DataError, match="no pairs of a known format"):
        open_pairs(str(text(tmp_path / "x.json", "{}")))
