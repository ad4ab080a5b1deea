"""Text files in every encoding that people save: read, or refused with the file's name."""

from pathlib import Path

import pytest
from peft_data import DataError, open_data
from peft_data.texts import read_json, read_lines, read_text

from tests.peft_data.drawn import class_folders, picture, vtab_task


def test_byte_order_marks_and_line_ends(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes("\ufeffa red cup\r\nün\u2028two\rlast\n\n".encode())
    assert read_text(tmp_path / "a.txt") == "a red cup\nün\u2028two\nlast\n\n"
    assert read_lines(tmp_path / "a.txt") == [(1, "a red cup"), (2, "ün\u2028two"), (3, "last")]


@pytest.mark.parametrize(("encoding", "says"), [("latin-1", "byte 3 is no UTF-8"), ("utf-16", "it is UTF-16")])
def test_other_encodings_are_refused_by_name(tmp_path: Path, encoding: str, says: str) -> None:
    (tmp_path / "café.txt").write_bytes("café dog".encode(encoding))
    with pytest.raises(DataError, match=rf"café.txt cannot be read as a caption \({says}\): save it as UTF-8"):
        read_text(tmp_path / "café.txt", "a caption")


def test_json_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes(b'\xef\xbb\xbf{"a": 1}')
    assert read_json(tmp_path / "a.json") == {"a": 1}
    for text, says in (("{", "no json file"), ("[" * 200_000, "nested too deep")):
        (tmp_path / "a.json").write_text(text, encoding="utf-8")
        with pytest.raises(DataError, match=f"a.json .*{says}"):
            read_json(tmp_path / "a.json")
    with pytest.raises(DataError, match="there is no such file"):
        read_json(tmp_path / "none.json")


def test_lists_and_tables_with_a_mark_or_in_another_encoding(tmp_path: Path) -> None:
    task = vtab_task(tmp_path / "cifar100")
    text = (task / "train800.txt").read_text(encoding="utf-8")
    (task / "train800.txt").write_bytes(b"\xef\xbb\xbf" + text.replace(" ", "\t").replace("\n", "\r\n").encode())
    assert len(open_data(str(task)).train) == 8
    (task / "train800.txt").write_bytes(text.encode("utf-16"))
    with pytest.raises(DataError, match="train800.txt cannot be read as a list of pictures"):
        open_data(str(task))
    class_folders(tmp_path, {"cat": 3, "dog": 3})
    for encoding in ("latin-1", "utf-16"):
        (tmp_path / "t.csv").write_bytes("path,label\nkäse.png,x\n".encode(encoding))
        with pytest.raises(DataError, match="t.csv cannot be read as a table"):
            open_data(str(tmp_path / "t.csv"))


@pytest.mark.parametrize(("name", "content"), [("classInd.txt", "1 A\n2 Bé\n"), ("trainlist01.txt", "A/é.avi 1\n")])
def test_lists_of_clips_in_another_encoding(tmp_path: Path, name: str, content: str) -> None:
    for file, text in (
        ("classInd.txt", "1 A\n2 B\n"),
        ("trainlist01.txt", "A/1.avi 1\n"),
        ("testlist01.txt", "A/1.avi\n"),
    ):
        (tmp_path / file).write_bytes((content if file == name else text).encode("latin-1"))
    with pytest.raises(DataError, match=f"{name} cannot be read .*no UTF-8"):
        open_data("ucf101", root=str(tmp_path))


@pytest.mark.parametrize(
    ("options", "says"),
    [({"val": -0.1}, "'val' of p must be 0 to 1"), ({"test": float("nan")}, "'test' of p must be 0 to 1, not nan"),
     ({"seed": -1}, "seed of the data must be a whole number"), ({"seed": 1 << 64}, "seed of the data"),
     ({"seed": True}, "seed of the data")],
)  # fmt: skip
def test_numbers_that_mean_nothing(tmp_path: Path, options: dict, says: str) -> None:
    picture(tmp_path / "p/a/0.png")
    with pytest.raises(DataError, match=says):
        open_data(str(tmp_path / "p"), **options)
