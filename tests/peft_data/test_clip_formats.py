"""Sets of clips in the lists and folders in which they are published."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from peft_data import DataError, open_data
from peft_data.clip_folder import clips_in
from peft_data.video.clips import Clips
from peft_data.world_motion import write_mp4
from PIL import Image


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("one") / "clip.mp4"
    write_mp4(path, torch.zeros(3, 3, 16, 16, dtype=torch.uint8))
    return path


def put(clip: Path, *places: Path) -> None:
    for place in places:
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(clip, place)


def frames(*places: Path) -> None:
    for place in places:
        place.mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(place / "img_00001.jpg")


def names(part: Clips) -> list[tuple[str, int]]:
    return [(part.name(row), int(part.labels[row])) for row in range(len(part))]


def test_class_folders_of_videos(clip: Path, tmp_path: Path) -> None:
    put(clip, *(tmp_path / word / f"{number}.mp4" for word in ("run", "wave") for number in range(5)))
    data = open_data(str(tmp_path), frames=4, views=3)
    assert data.class_names == ("run", "wave") and isinstance(data.train, Clips)
    assert (len(data.train), len(data.val), len(data.test)) == (6, 2, 2) and data.test.sampling.views == 3
    with pytest.raises(DataError, match="no option 'frame' .did you mean 'frames'"):
        open_data(str(tmp_path), frame=4)


def test_class_folders_of_frames(tmp_path: Path) -> None:
    frames(*(tmp_path / split / word / f"clip{n}" for split in ("train", "test") for word in "ab" for n in range(2)))
    data = open_data("clips", root=str(tmp_path), directional=True)
    assert names(data.train) == [("train/a/clip0", 0), ("train/a/clip1", 0), ("train/b/clip0", 1), ("train/b/clip1", 1)]
    assert data.train.directional
    (tmp_path / "train" / "c").mkdir()
    with pytest.raises(DataError, match="train/c is a class folder without clips"):
        open_data("clips", root=str(tmp_path))


@pytest.mark.parametrize("between", [" ", ",", "\t", ", "])
def test_lists_divided_by_blank_comma_or_tab(clip: Path, tmp_path: Path, between: str) -> None:
    put(clip, tmp_path / "a b.mp4", tmp_path / "c.mp4", tmp_path / "d.mp4")
    (tmp_path / "train.csv").write_text(f"a b.mp4{between}0\nc.mp4{between}1\n", encoding="utf-8")
    (tmp_path / "val.csv").write_text(f"c.mp4{between}1\n", encoding="utf-8")
    (tmp_path / "test.csv").write_text(f"\nd.mp4{between}0\n", encoding="utf-8")
    data = open_data(str(tmp_path))
    assert names(data.train) == [("a b.mp4", 0), ("c.mp4", 1)] and names(data.test) == [("d.mp4", 0)]
    assert data.train.sampling.kind == "dense" and data.train.sampling.stride == 16


def test_lists_of_mmaction_and_folders_of_frames(clip: Path, tmp_path: Path) -> None:
    frames(tmp_path / "v" / "one", tmp_path / "v" / "two")
    (tmp_path / "sthv2_train_list_rawframes.txt").write_text("one 33 0\ntwo 20 1\n", encoding="utf-8")
    (tmp_path / "sthv2_val_list_rawframes.txt").write_text("two 20 1\n", encoding="utf-8")
    (tmp_path / "names.txt").write_text("pushing\npulling\n", encoding="utf-8")
    data = open_data(
        "kinetics400", root=str(tmp_path), videos=str(tmp_path / "v"), class_names=str(tmp_path / "names.txt")
    )
    assert names(data.train) == [("one", 0), ("two", 1)] and data.class_names == ("pushing", "pulling")
    assert names(data.test) == [("two", 1)] and "no test list" in data.notes[0]


def test_lists_with_mistakes(clip: Path, tmp_path: Path) -> None:
    put(clip, tmp_path / "a.mp4")
    (tmp_path / "train.csv").write_text("a.mp4 0\ngone/b.mp4 1\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"(?s)one clip is listed in .*train.csv but not there: .*gone/b.mp4"):
        open_data(str(tmp_path))
    (tmp_path / "train.csv").write_text("a.mp4 0\na.mp4\n", encoding="utf-8")
    with pytest.raises(DataError, match="line 2 of .*train.csv has no label"):
        open_data(str(tmp_path))
    (tmp_path / "train.csv").write_text("a.mp4 wave\n", encoding="utf-8")
    with pytest.raises(DataError, match="label 'wave': labels must be whole numbers from 0"):
        open_data(str(tmp_path))
    with pytest.raises(DataError, match="has no list of training clips"):
        open_data("kinetics400", root=str(clip.parent))


def test_something_something(clip: Path, tmp_path: Path) -> None:
    videos = tmp_path / "20bn-something-something-v2"
    put(clip, *(videos / f"{number}.webm" for number in range(12)))
    templates = ["Holding [something] next to [something]", "Pushing [something] from left to right"]
    (tmp_path / "labels.json").write_text(
        json.dumps({t.replace("[", "").replace("]", ""): str(n) for n, t in enumerate(templates)}), encoding="utf-8"
    )
    rows = [{"id": str(number), "label": "x", "template": templates[number % 2]} for number in range(12)]
    (tmp_path / "train.json").write_text(json.dumps(rows[:10]), encoding="utf-8")
    (tmp_path / "validation.json").write_text(json.dumps(rows[10:]), encoding="utf-8")
    data = open_data("ssv2", root=str(tmp_path))
    assert data.class_names == ("Holding something next to something", "Pushing something from left to right")
    assert (len(data.train), len(data.val)) == (9, 1) and data.test.labels.tolist() == [0, 1]
    assert data.train.directional and data.train.sampling.kind == "uniform"
    (tmp_path / "validation.json").write_text(
        json.dumps([{"id": "1", "template": "Holding [something] near"}]), encoding="utf-8"
    )
    with pytest.raises(DataError, match="which is no label"):
        open_data("ssv2", root=str(tmp_path))
    (tmp_path / "labels.json").write_text("{", encoding="utf-8")
    with pytest.raises(DataError, match="labels.json cannot be read .*damaged"):
        open_data("ssv2", root=str(tmp_path))


def test_hmdb51(clip: Path, tmp_path: Path) -> None:
    for word in ("brush_hair", "wave"):
        put(clip, *(tmp_path / word / f"{n}.avi" for n in range(3)))
        (tmp_path / f"{word}_test_split2.txt").write_text("0.avi 1 \n1.avi 2 \n2.avi 0 \n", encoding="utf-8")
    data = open_data("hmdb51", root=str(tmp_path), split=2)
    assert data.class_names == ("brush hair", "wave")
    assert names(data.train) == [("brush_hair/0.avi", 0), ("wave/0.avi", 1)]
    assert names(data.test) == [("brush_hair/1.avi", 0), ("wave/1.avi", 1)]
    with pytest.raises(DataError, match="no files .*_test_split1.txt"):
        open_data("hmdb51", root=str(tmp_path))
    with pytest.raises(DataError, match="splits 1, 2 and 3, not 4"):
        open_data("hmdb51", root=str(tmp_path), split=4)


def test_ucf101(clip: Path, tmp_path: Path) -> None:
    put(clip, tmp_path / "Archery" / "a.avi", tmp_path / "Biking" / "b.avi")
    lists = tmp_path / "ucfTrainTestlist"
    lists.mkdir()
    (lists / "classInd.txt").write_text("1 Archery\n2 Biking\n", encoding="utf-8")
    (lists / "trainlist01.txt").write_text("Archery/a.avi 1\nBiking/b.avi 2\n", encoding="utf-8")
    (lists / "testlist01.txt").write_text("Biking/b.avi\n", encoding="utf-8")
    data = open_data("ucf101", root=str(tmp_path))
    assert names(data.train) == [("Archery/a.avi", 0), ("Biking/b.avi", 1)] and names(data.test) == [
        ("Biking/b.avi", 1)
    ]


def test_diving48(clip: Path, tmp_path: Path) -> None:
    put(clip, tmp_path / "rgb" / "x_1.mp4", tmp_path / "rgb" / "x_2.mp4")
    for part in ("train", "test"):
        rows = [{"vid_name": f"x_{n}", "label": n - 1, "start_frame": 0, "end_frame": 9} for n in (1, 2)]
        (tmp_path / f"Diving48_V2_{part}.json").write_text(json.dumps(rows), encoding="utf-8")
    data = open_data("diving48", root=str(tmp_path))
    assert names(data.test) == [("rgb/x_1.mp4", 0), ("rgb/x_2.mp4", 1)] and data.test.directional
    (tmp_path / "Diving48_V2_test.json").write_text("[{}]", encoding="utf-8")
    with pytest.raises(DataError, match="Diving48_V2_test.json is damaged"):
        open_data("diving48", root=str(tmp_path))


def test_lists_with_a_header(clip: Path, tmp_path: Path) -> None:
    for name in ("a", "b", "c", "d"):
        put(clip, tmp_path / f"{name}.mp4")
    for head, labels in (("path,label", "0101"), ("video label", "0101"), ("\ufeffpath,label", ["run", "wave"] * 2)):
        rows = [f"{name}.mp4,{label}" for name, label in zip("abcd", labels, strict=True)]
        (tmp_path / "Train.csv").write_text("\n".join([head, *rows]), encoding="utf-8")
        data = open_data(str(tmp_path))
        assert len(data.train) + len(data.val) == 4 and len(data.class_names) == 2 and data.train.kind == "clips"
    assert data.class_names == ("run", "wave")
    (tmp_path / "test.csv").write_text("path,label\na.mp4,jump\n", encoding="utf-8")
    with pytest.raises(DataError, match="test.csv has the class 'jump', which train has not"):
        open_data(str(tmp_path))
    (tmp_path / "test.csv").write_bytes("a.mp4 0\né.mp4 1\n".encode("latin-1"))
    with pytest.raises(DataError, match="test.csv cannot be read as a list of clips .*no UTF-8"):
        open_data(str(tmp_path))


def test_one_table_of_clips(clip: Path, tmp_path: Path) -> None:
    for number in range(10):
        put(clip, tmp_path / f"v/{number}.mp4")
        with open(tmp_path / f"v/{number}.mp4", "ab") as file:
            file.write(bytes([number]))  # no two are the same
    rows = [f"v/{number}.mp4;{('run', 'wave')[number % 2]};{'Test' if number > 7 else 'train'}" for number in range(10)]
    (tmp_path / "clips.csv").write_text("\n".join(["path;label;split", *rows]), encoding="utf-8")
    data = open_data(str(tmp_path / "clips.csv"), frames=4)
    assert data.class_names == ("run", "wave") and data.train.sampling.frames == 4 and data.name == "clips"
    assert [len(part) for part in (data.train, data.val, data.test)] == [8, 0, 2] and data.notes == ()
    (tmp_path / "one.csv").write_text(
        "path,label\n" + "".join(row.rpartition(";")[0].replace(";", ",") + "\n" for row in rows), encoding="utf-8"
    )
    data = open_data(str(tmp_path / "one.csv"), test=0.4)
    assert [len(part) for part in (data.train, data.val, data.test)] == [4, 2, 4]
    (tmp_path / "one.csv").write_text("path,label\nv/0.mp4,run\nv/none.mp4,wave\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"(?s)one clip is listed in .*one.csv but not there.*none.mp4"):
        open_data(str(tmp_path / "one.csv"))


def test_every_suffix_of_videos_and_folders_in_any_case(clip: Path, tmp_path: Path) -> None:
    for number, suffix in enumerate((".MTS", ".m2ts", ".MP4", ".3g2", ".mpe")):
        put(clip, tmp_path / f"c/Training/wave/{number}{suffix}")
        put(clip, tmp_path / f"c/Training/run/{number}{suffix}")
    put(clip, tmp_path / "c/TEST/wave/x.mts")
    (tmp_path / "c/TEST/wave/x.aac").write_bytes(b"x")
    put(clip, tmp_path / "c/Training/run/.ipynb_checkpoints/0.mp4")
    data = open_data(str(tmp_path / "c"))
    assert data.train.kind == "clips" and [len(data.train) + len(data.val), len(data.test)] == [10, 1]
    assert data.left_out == 1 and any("1 .aac" in note for note in data.notes)
    assert [path.name for path in clips_in(tmp_path / "c/TEST")] == ["x.mts"]
