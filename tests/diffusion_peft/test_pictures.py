"""Pictures and captions from folders, and drawn subjects."""

from pathlib import Path

import pytest
from peft_data import DataError

from diffusion_peft.data.buckets import cut, fit_to
from diffusion_peft.data.pictures import open_pictures
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
