"""Which files and folders of a user's data count, and what is said of the others."""

import os
import unicodedata
from pathlib import Path

import pytest
from peft_data import DataError, open_data
from peft_data.pictures import is_picture
from peft_data.walk import LeftOut, files_in, folders_in, is_run

from tests.peft_data.drawn import class_folders, picture


def names_of(data) -> list[str]:
    return sorted(part.name(i) for part in (data.train, data.val, data.test) for i in range(len(part)))


def test_hidden_and_system_folders_count_at_no_depth(tmp_path: Path) -> None:
    class_folders(tmp_path / "p", {"cat": 4, "dog/deep": 4})
    for inside in ("cat/.ipynb_checkpoints", "__MACOSX/cat", "dog/deep/__MACOSX", "dog/@eaDir", ".trash", "cat/a/.b"):
        picture(tmp_path / "p" / inside / "0.png")
    picture(tmp_path / "p/cat/._0.jpg")
    data = open_data(str(tmp_path / "p"))
    assert data.class_names == ("cat", "dog") and data.left_out == 0 and data.notes == ()
    assert names_of(data) == [f"cat/{i}.jpg" for i in range(4)] + [f"dog/deep/{i}.jpg" for i in range(4)]


def test_links_are_followed_once_and_dead_ones_are_counted(tmp_path: Path) -> None:
    class_folders(tmp_path, {"p/cat": 3, "p/_dog": 3, "far": 3})
    os.symlink(tmp_path / "far", tmp_path / "p/cat/more")
    os.symlink(tmp_path / "far", tmp_path / "p/cat/again")
    os.symlink(tmp_path / "p", tmp_path / "p/cat/round")
    os.symlink("loop", tmp_path / "p/cat/loop")
    os.symlink("gone.jpg", tmp_path / "p/_dog/dead.jpg")
    os.symlink(tmp_path / "p/cat/0.jpg", tmp_path / "p/_dog/one.jpg")
    os.mkfifo(tmp_path / "p/_dog/pipe.jpg")
    (tmp_path / "p/_dog/raw.CR2").write_bytes(b"x")
    data = open_data(str(tmp_path / "p"))
    assert data.class_names == ("_dog", "cat") and data.left_out == 4
    found = names_of(data)
    assert sum("far" in name or "/more/" in name or "/again/" in name for name in found) == 3
    assert "_dog/one.jpg" in found and "_dog/pipe.jpg" not in found
    note = data.notes[0]
    assert "4 files are left out" in note and "1 .cr2" in note and "2 dangling links" in note and "1 pipe" in note
    assert any("_dog/one.jpg" in note and "two classes" in note for note in data.notes)
    assert data.summary.endswith("; 4 files left out") and data.summary.startswith(
        f"{len(found)} pictures of 2 classes: "
    )


@pytest.mark.parametrize("command", ["vision_peft fit", "clip_peft sweep", '"diffusion_peft fit"', "vision_peft noah"])
def test_folders_of_runs_are_no_data(tmp_path: Path, command: str) -> None:
    class_folders(tmp_path / "p", {"cat": 5, "dog": 5})
    for run in ("p/runs/one", "p/cat/tries/x"):
        picture(tmp_path / run / "curves.png")
        picture(tmp_path / run / "deeper/samples.png")
        (tmp_path / run / "config.yaml").write_text(
            f"# again: {command}\ncommand: {command}\ndata: p\n", encoding="utf-8"
        )
    assert is_run(tmp_path / "p/runs/one") and not is_run(tmp_path / "p")
    data = open_data(str(tmp_path / "p"))
    assert data.class_names == ("cat", "dog") and len(names_of(data)) == 10
    assert any("2 folders (" in note and "of runs or sweeps" in note for note in data.notes)
    with pytest.raises(DataError, match="is the folder of a run or sweep, not of data"):
        open_data(str(tmp_path / "p/runs/one"))
    left_out = LeftOut()
    assert files_in(tmp_path / "p/runs", is_picture, left_out) == [] and len(left_out.runs) == 1


def test_a_config_of_something_else_is_no_run(tmp_path: Path) -> None:
    class_folders(tmp_path / "p", {"cat": 3, "dog": 3})
    (tmp_path / "p/cat/config.yaml").write_text("command: make coffee\n", encoding="utf-8")
    assert open_data(str(tmp_path / "p")).class_names == ("cat", "dog")


@pytest.mark.parametrize(
    "words", [("Train", "Val", "Test"), ("TRAINING", "Validation", "testing"), ("training_set", "valid", "Test Set")]
)
def test_split_folders_in_any_case(tmp_path: Path, words: tuple[str, ...]) -> None:
    for word, each in zip(words, (4, 2, 3), strict=True):
        class_folders(tmp_path / "p" / word, {"cat": each, "dog": each})
    data = open_data(str(tmp_path / "p"))
    assert data.class_names == ("cat", "dog")
    assert [len(part) for part in (data.train, data.val, data.test)] == [8, 4, 6]


def test_split_folders_that_are_unclear(tmp_path: Path) -> None:
    class_folders(tmp_path / "a/Test", {"cat": 3, "dog": 3})
    with pytest.raises(DataError, match="has Test but no train folder"):
        open_data(str(tmp_path / "a"))
    for word in ("train", "Training"):
        class_folders(tmp_path / "b" / word, {"cat": 3, "dog": 3})
    with pytest.raises(DataError, match="two folders for train"):
        open_data(str(tmp_path / "b"))
    class_folders(tmp_path / "c", {"train": 5, "bus": 5, "car": 5})  # vehicles
    assert open_data(str(tmp_path / "c")).class_names == ("bus", "car", "train")
    class_folders(tmp_path / "d", {"train/cat": 5, "train/dog": 5, "rest/cat": 5})
    assert "rest beside the train folder" in open_data(str(tmp_path / "d")).notes[0]
    class_folders(tmp_path / "e/inner", {"cat": 5, "dog": 5})
    with pytest.raises(DataError, match="has one folder, which has 2: open .*inner"):
        open_data(str(tmp_path / "e"))


def test_names_in_either_form_of_unicode(tmp_path: Path) -> None:
    class_folders(tmp_path / "p/train", {unicodedata.normalize("NFC", "Käse"): 4, "dog": 4})
    class_folders(tmp_path / "p/test", {unicodedata.normalize("NFD", "Käse"): 2})
    data = open_data(str(tmp_path / "p"))
    assert data.class_names[0] == unicodedata.normalize("NFC", "Käse") and data.test.labels.tolist() == [0, 0]
    (tmp_path / "t.csv").write_text(
        unicodedata.normalize("NFD", "path,label\np/train/Käse/0.jpg,Käse\n")
        + unicodedata.normalize("NFC", "p/train/Käse/1.jpg,Käse\n") + "p\\train\\dog\\1.jpg,dog\n", encoding="utf-8",
    )  # fmt: skip
    assert len(open_data(str(tmp_path / "t.csv")).class_names) == 2


def test_names_that_no_result_could_hold(tmp_path: Path) -> None:
    class_folders(tmp_path / "p", {"cat": 3, "dog": 3})
    (tmp_path / "p" / os.fsdecode(b"caf\xe9")).mkdir()
    with pytest.raises(DataError, match=r"caf\\xe9 is no UTF-8"):
        open_data(str(tmp_path / "p"))
    with pytest.raises(DataError, match=r"caf\\xe9 is no UTF-8"):
        open_data(str(tmp_path / "p" / os.fsdecode(b"caf\xe9")))
    (tmp_path / "p" / os.fsdecode(b"caf\xe9")).rmdir()
    picture(tmp_path / "p/cat" / os.fsdecode(b"\xff.png"))
    with pytest.raises(DataError, match=r"\\xff.png is no UTF-8"):
        open_data(str(tmp_path / "p"))


def test_a_video_among_pictures_is_left_out(tmp_path: Path) -> None:
    class_folders(tmp_path / "p", {"cat": 4, "dog": 4})
    (tmp_path / "p/cat/IMG_1.MOV").write_bytes(b"x")
    data = open_data(str(tmp_path / "p"))
    assert data.train.kind == "pictures" and "1 .mov" in data.notes[0]
    assert [path.name for path in folders_in(tmp_path / "p")] == ["cat", "dog"]


def test_archives_are_to_be_unpacked(tmp_path: Path) -> None:
    (tmp_path / "p.zip").write_bytes(b"PK")
    with pytest.raises(DataError, match="is an archive: unpack it"):
        open_data(str(tmp_path / "p.zip"))


def test_stray_lists_beside_class_folders_do_not_matter(tmp_path: Path) -> None:
    class_folders(tmp_path / "p", {"cat": 4, "dog": 4})
    for name in ("training_notes.txt", "train_log.json", "colours.mat", "README.md"):
        (tmp_path / "p" / name).write_text("notes", encoding="utf-8")
    assert open_data(str(tmp_path / "p")).class_names == ("cat", "dog")
