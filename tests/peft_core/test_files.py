"""Files are written whole or not at all, and read as input that nobody vouches for."""

import json
import os
from pathlib import Path

import pytest

from peft_core import PeftError, files
from peft_core.files import must_encode, parse_json, read_json, read_text, read_yaml, write_files


def test_a_byte_order_mark_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b'\xef\xbb\xbf{"caf\xc3\xa9": 1}')
    assert read_text(tmp_path / "a")[0] == "{" and read_json(tmp_path / "a") == {"café": 1}
    assert read_yaml(tmp_path / "a") == {"café": 1}


@pytest.mark.parametrize(
    ("content", "read", "sentence"),
    [
        (b"caf\xe9: 1", read_yaml, "is no UTF-8 text .byte 3.: mend it"),
        (b"\xff\xfe{\x00", read_json, "is no UTF-8 text"),
        (b"{", read_json, "is damaged, no JSON"),
        (b"a: [", read_yaml, "is damaged: it is no readable YAML"),
        (b"- 1", read_yaml, "must hold `option: value` lines"),
        (b"a: 1\nb: {c: 1, c: 2}", read_yaml, '"c" stands there twice'),
        (b"d: 2020-13-45", read_yaml, "is damaged: it is no readable YAML"),
        (b"[" * 100_000, read_json, "nested too deep"),
        (b"[" * 100 + b"]" * 100, read_json, "nested too deep"),
        (b"a: " + b"[" * 3000, read_yaml, "nested too deep|no readable YAML"),
        (b"a: &a [1,1,1,1,1,1,1,1,1,1]\n"
         + b"".join(b"%c: &%c [%s]\n" % (n, n, b",".join([b"*%c" % (n - 1)] * 10)) for n in range(98, 106)),
         read_yaml, "holds too much"),
    ],
)  # fmt: skip
def test_damaged_files_are_told_by_name(tmp_path: Path, content: bytes, read, sentence: str) -> None:
    (tmp_path / "damaged").write_bytes(content)
    with pytest.raises(PeftError, match=sentence) as caught:
        read(tmp_path / "damaged", "mend it")
    assert str(tmp_path / "damaged") in str(caught.value) and "mend it" in str(caught.value)


def test_files_that_are_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(PeftError, match="nowhere cannot be read .No such file or directory.: check the file"):
        read_text(tmp_path / "nowhere")
    with pytest.raises(PeftError, match="Is a directory"):
        read_json(tmp_path)
    with pytest.raises(PeftError, match="line 3 of x is damaged, no JSON"):
        parse_json("{", "line 3 of x")
    monkeypatch.setattr(files, "LARGEST", 3)
    (tmp_path / "large").write_text("1234", encoding="utf-8")
    with pytest.raises(PeftError, match="too much for such a file"):
        read_text(tmp_path / "large")


def test_all_files_or_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_files(tmp_path, {"one": b"old", "two": b"old"})
    real, calls = os.replace, []

    def second(here, there) -> None:
        calls.append(there)
        if len(calls) == 2:
            raise OSError(28, "No space left on device")
        real(here, there)

    monkeypatch.setattr(os, "replace", second)
    with pytest.raises(PeftError, match="No space left on device.: what stood there is unchanged"):
        write_files(tmp_path, {"one": b"new", "two": b"new"})
    assert [path.read_bytes() for path in sorted(tmp_path.iterdir())] == [b"old", b"old"]
    calls.clear()
    with pytest.raises(PeftError):
        write_files(tmp_path, {"three": b"new", "two": b"new"})
    assert sorted(os.listdir(tmp_path)) == ["one", "two"]


def test_a_folder_where_a_file_should_stand(tmp_path: Path) -> None:
    (tmp_path / "two").mkdir()
    write_files(tmp_path, {"one": b"old"})
    with pytest.raises(PeftError, match="what stood there is unchanged"):
        write_files(tmp_path, {"one": b"new", "two": b"new"})
    assert (tmp_path / "one").read_bytes() == b"old" and sorted(os.listdir(tmp_path)) == ["one", "two"]


def test_a_folder_below_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(PeftError, match="cannot write to .*file/inner .Not a directory"):
        write_files(tmp_path / "file" / "inner", {"one": b""})


def test_names_that_no_file_can_hold() -> None:
    must_encode(["crème", "東京"], "the class")
    with pytest.raises(PeftError, match=r'the class "cr\\udce8me" is no UTF-8 text'):
        must_encode(["a", "cr\udce8me"], "the class")


def test_json_is_what_was_written(tmp_path: Path) -> None:
    write_files(tmp_path, {"a": json.dumps({"x": [1, {"y": None}]}).encode()})
    assert read_json(tmp_path / "a") == {"x": [1, {"y": None}]}
