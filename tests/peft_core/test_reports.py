"""Figures and tables of a report."""

import io
import warnings

import numpy as np
import pytest
import torch
from PIL import Image

from peft_core.jobs.reports import fonts, page, plots
from peft_core.jobs.reports.classified import accuracy_words
from peft_core.jobs.reports.scores import Scores, by_class, sure
from peft_core.jobs.runs.folder import Diverged


def pixels(png: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(png)).convert("L"))


@pytest.mark.parametrize("names", [["a class of 18 chars"] * 10, ["x"] * 3, ["n" * 60] * 25, ["y"] * 40])
def test_nothing_that_is_written_around_a_figure_is_cut(names: list[str]) -> None:
    image = pixels(plots.confusion(np.eye(len(names), dtype=int), names))
    border = np.concatenate([image[0], image[-1], image[:, 0], image[:, -1]])
    assert (border == 255).all()
    left = image[:, : image.shape[1] // 2].min(0)
    inked = np.flatnonzero(left < 200)
    assert np.diff(inked).max() >= 1 and inked[0] < 40  # the axis's own label stands at the very left


def test_names_that_no_font_or_formula_takes() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for names in (["東京", "大阪"], ["$\\frac$", "a$b$c"], ["two\nlines", "cr\udce8me"]):
            plots.confusion(np.eye(2, dtype=int), names)
            plots.scatter([(name, 10.0**n, 0.5, 0.0) for n, name in enumerate(names)], "x", "y")


def test_long_names_can_be_told_apart() -> None:
    names = [f"a class with a quite long name, number {n}" for n in range(4)]
    assert len({plots.label(name) for name in names}) == 4 and all(len(plots.label(name)) <= 24 for name in names)
    assert plots.label("short") == "short"


def test_how_sure_an_accuracy_is() -> None:
    scores = Scores(torch.tensor([[20, 4], [4, 20]]), torch.empty(0), torch.empty(0))
    assert scores.interval == pytest.approx((0.7042, 0.9130), abs=1e-3)  # Wilson's of 40 among 48
    assert accuracy_words(scores) == "accuracy 83.33 % (48 pictures: 70.4 to 91.3 % with 95 % confidence)"
    assert Scores(torch.tensor([[3, 0], [0, 3]]), *scores[1:]).interval[1] == 1.0
    assert accuracy_words(None) == "not scored"


def test_classes_of_one_name_are_kept_apart() -> None:
    scores = Scores(torch.tensor([[1, 0, 0], [1, 1, 0], [0, 0, 0]]), torch.empty(0), torch.empty(0))
    assert by_class(("crane", "ox", "crane"), scores) == {"crane (0)": 1.0, "ox": 0.5, "crane (2)": None}


def test_outputs_that_are_no_numbers() -> None:
    predicted, probability = sure(torch.tensor([[0.0, 9.0]]))
    assert predicted.tolist() == [1] and probability.item() > 0.99
    with pytest.raises(Diverged, match="outputs are no numbers"):
        sure(torch.tensor([[0.0, float("nan")]]))


def test_tables_and_names_that_are_no_utf8() -> None:
    assert '<td class="n">1,234</td>' in page.table([["a", 1234]], ["name", "n"])
    assert "<td>1,234</td>" in page.table([["a", 1234]])
    assert page.csv_bytes([{"path": "cr\udce8me"}]) == b"path\ncr\\udce8me\n"
    assert b"cr\\udce8me" in page.page("cr\udce8me", "", [])


def test_long_names_stand_whole_beside_the_matrix() -> None:
    name = "a class with a quite long name, number 1"
    assert plots.in_lines([name, "cat"]) == ["a class with a quite long\nname, number 1", "cat"]
    side = [pixels(plots.confusion(np.eye(2, dtype=int), [each, "b"])).shape for each in ("a", "n" * 80)]
    assert side[1][0] > side[0][0] and side[1][1] > side[0][1]  # the matrix keeps its place


def test_signs_that_no_font_has_are_told_once_with_the_fonts_to_install(monkeypatch, capsys) -> None:
    monkeypatch.setattr(fonts, "_told", set())
    monkeypatch.setattr(fonts, "families", lambda missing: [])
    for _ in range(2):
        plots.confusion(np.eye(2, dtype=int), ["東京 🐈", "ไทย"])
    (note,) = capsys.readouterr().err.splitlines()
    assert "(thai, cjk, emoji)" in note and "fonts-noto-core and fonts-noto-cjk and fonts-symbola" in note


def test_a_long_curve_is_smoothed() -> None:
    assert plots.smooth([0.0, 1.0] * 50, 0.2)[40:60] == pytest.approx([0.5] * 20, abs=0.03)
    assert plots.smooth([3.0]) == [3.0]


def test_fonts_of_the_machine_are_found_for_names_in_any_script() -> None:
    figure, (axis,) = plots.axes(1, 1)
    text = axis.set_title("b∀ 京")
    fonts.suit(figure)
    found = fonts.families(frozenset("京"))
    assert text.get_fontfamily()[1:] == [name for name, _ in found]
    assert fonts.families(frozenset("a"))[0][1] == {"a"}  # every machine with matplotlib draws letters


def test_wide_signs_count_two_columns() -> None:
    assert fonts.columns("ab京e\u0301") == 5
    assert fonts.cut("很长的中文类别名称1", 12) == "很长的…名称1" and fonts.cut("short", 12) == "short"
    assert fonts.wrapped("aa 很长的中文", 6) == ["aa", "很长的", "中文"]


def test_names_from_the_right_turn_nothing_around() -> None:
    assert fonts.isolated("cat") == "cat" and fonts.isolated("קטה 2") == "\u2068קטה 2\u2069"
    said = fonts.isolate("never: קטה 2, קטה, cat", ["קטה", "קטה 2", "cat"])
    assert said == "never: \u2068קטה 2\u2069, \u2068קטה\u2069, cat"
