"""Pictures and captions from folders, and drawn subjects."""

from pathlib import Path

import pytest
from peft_data import DataError

from diffusion_peft.data.buckets import cut, fit_to
from diffusion_peft.data.pictures import open_pictures
from peft_core.errors import PeftError
from tests.diffusion_peft.conftest import draw_pictures


def test_captions_beside_pictures_and_in_a_list(tmp_path: Path) -> None:
    folder = Path(draw_pictures(tmp_path / "a", [(16, 16)] * 3))
    draw_pictures(folder / "more", [(8, 12)])
    (folder / "metadata.jsonl").write_text(
        '{"file_name": "0.png", "text": "from the list"}\n\n{"file_name": "more/0.png", "caption": "deep"}\n'
    )
    (folder / "1.txt").write_text("  beside\n it ")
    found = {picture.name: picture.caption for picture in open_pictures(str(folder))}
    assert found == {"0.png": "from the list", "1.png": "beside it", "2.png": None, "more/0.png": "deep"}


def test_digest_is_of_the_content(tmp_path: Path) -> None:
    first = open_pictures(draw_pictures(tmp_path / "a", [(16, 16), (16, 18)]))
    second = open_pictures(draw_pictures(tmp_path / "b", [(16, 16), (16, 18)]))
    assert [p.digest() for p in first] == [p.digest() for p in second] and first[0].digest() != first[1].digest()


def test_drawn_subjects() -> None:
    pictures = open_pictures("world/subjects/0")
    assert len(pictures) == 5 and (pictures[0].height, pictures[0].width) == (64, 64)
    assert pictures[0].digest() == open_pictures("world/subjects/0")[0].digest()
    assert pictures[0].digest() != open_pictures("world/subjects/1")[0].digest()
    with pytest.raises(DataError, match="there is no subject"):
        open_pictures("world/subjects/99")


def test_mirrored(tmp_path: Path) -> None:
    (picture,) = open_pictures(draw_pictures(tmp_path / "a", [(16, 16)]))
    crop = fit_to(16, 16, [(16, 16)])
    x, y = (cut(picture.read(), crop, flip) for flip in (False, True))
    assert (x.flip(-1) == y).all() and x.min() >= -1 and x.max() <= 1


def test_a_byte_order_mark_is_no_part_of_a_caption(tmp_path: Path) -> None:
    folder = Path(draw_pictures(tmp_path / "a", [(16, 16)] * 2))
    (folder / "0.txt").write_bytes(b"\xef\xbb\xbfa red cup")
    (folder / "metadata.jsonl").write_bytes(b'\xef\xbb\xbf{"file_name": "1.png", "text": "a blue cup"}')
    assert [picture.caption for picture in open_pictures(str(folder))] == ["a red cup", "a blue cup"]


@pytest.mark.parametrize("name", ["0.txt", "metadata.jsonl"])
@pytest.mark.parametrize("encoding", ["latin-1", "utf-16"])
def test_captions_that_are_no_utf8_are_named(tmp_path: Path, name: str, encoding: str) -> None:
    folder = Path(draw_pictures(tmp_path / "a", [(16, 16)]))
    text = '{"file_name": "0.png", "text": "ein Café"}' if name.endswith("jsonl") else "ein Café"
    (folder / name).write_bytes(text.encode(encoding))
    with pytest.raises(PeftError, match=f"{name} is no UTF-8 text .* save it as UTF-8"):
        open_pictures(str(folder))


def test_what_systems_and_runs_leave_is_no_data(tmp_path: Path) -> None:
    folder = Path(draw_pictures(tmp_path / "a", [(16, 16)] * 2))
    for inside in (".ipynb_checkpoints", "__MACOSX", "more/.ipynb_checkpoints", "runs/one", "runs/one/samples"):
        draw_pictures(folder / inside, [(16, 16)])
    (folder / "runs" / "one" / "config.yaml").write_text("command: diffusion_peft fit\n", encoding="utf-8")
    assert [picture.name for picture in open_pictures(str(folder))] == ["0.png", "1.png"]


def test_folders_as_kohya_has_them(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    folder = tmp_path / "a"
    draw_pictures(folder / "10_sks dog", [(16, 16)] * 2)
    draw_pictures(folder / "1_dog", [(16, 16)])
    draw_pictures(folder / "plain", [(16, 16)])
    (folder / "10_sks dog" / "1.txt").write_text("a dog in the snow", encoding="utf-8")
    found = {picture.name: (picture.caption, picture.repeats) for picture in open_pictures(str(folder))}
    assert found == {"10_sks dog/0.png": ("sks dog", 10), "10_sks dog/1.png": ("a dog in the snow", 10),
                     "1_dog/0.png": ("dog", 1), "plain/0.png": (None, 1)}  # fmt: skip
    said = capsys.readouterr().err
    assert (
        "10_sks dog: its 2 pictures count 10 times each" in said and '1 without a caption are called "sks dog"' in said
    )
