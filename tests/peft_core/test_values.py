"""Types and ranges that are declared with a setting."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
import pytest

from peft_core.errors import PeftError
from peft_core.values import Count, Positive, Range, Rate, Seed, Widths, check_fields, describe, typed

Side = Annotated[int, Range(8, 4096, multiple=8)]


@pytest.mark.parametrize(
    ("given", "hint", "value"),
    [
        ("4", int, 4),
        ("1e-3", float, 1e-3),
        (4, float, 4.0),
        ("4", str | int, "4"),
        (4, str | int, 4),
        ("0.5", int | float | None, 0.5),
        ("null", str | None, None),
        ("[1, 0]", Widths, [1, 0]),
        (["1", "0"], Widths, [1, 0]),
        ("3", Widths, 3),
        ("a", list[str], ["a"]),
        (["2", "3"], tuple[int, int], [2, 3]),
        (np.int64(3), Count, 3),
        (np.float32(0.5), Rate, 0.5),
        (False, Literal["auto", "off"], "off"),
        ("TRUE", bool, True),
        ("16", Side, 16),
    ],
)
def test_values_become_what_their_annotation_says(given: Any, hint: Any, value: Any) -> None:
    found = typed(given, hint, "--x")
    assert found == value and type(found) is type(value)


@pytest.mark.parametrize(
    ("given", "hint", "sentence"),
    [
        ("-1", Positive, "--x must be above 0, not -1."),
        ("0", Count, "--x must be 1 or more, not 0."),
        (0, Widths, "--x must be 1 or more, not 0."),
        ("0", Widths, "--x must be 1 or more, not 0."),
        ("1", Rate, "--x must be in [0, 1), not 1."),
        (-1, Seed, "--x must be in [0, 4,294,967,295], not -1."),
        ("9" * 60, Seed, f'--x takes a whole number, not "{"9" * 60}".'),
        ("65", Side, "--x must be in [8, 4,096] and a multiple of 8, not 65."),
        ("nan", float, '--x takes a number, not "nan".'),
        (float("inf"), Positive, '--x takes a number, not "inf".'),
        ("1" + "0" * 400, float, 'not "1000'),
        (True, int, '--x takes a whole number, not "True".'),
        (2.0, int, '--x takes a whole number, not "2.0".'),
        ("aut", Literal["auto", "on"], '--x takes one of auto, on, not "aut", did you mean "auto"?'),
        (["1"], tuple[int, int], '--x takes a list, each a whole number, not "1".'),
        (None, int, '--x takes a whole number, not "None".'),
        ("[" * 5000, list[int], "--x takes a list"),
    ],
)
def test_values_that_an_annotation_does_not_take(given: Any, hint: Any, sentence: str) -> None:
    with pytest.raises(PeftError) as caught:
        typed(given, hint, "--x")
    assert sentence in str(caught.value)


@dataclass(frozen=True)
class Settings:
    rank: Widths = 4
    blocks: Sequence[int] | None = None
    dropout: Rate = 0.0

    def __post_init__(self) -> None:
        check_fields(self)


def test_fields_of_a_dataclass() -> None:
    found = Settings(rank=np.int64(2), blocks=range(3))
    assert found == Settings(2, (0, 1, 2)) and type(found.rank) is int
    assert Settings(rank=[1, 0]).rank == (1, 0)
    for wrong in ({"rank": "8"}, {"rank": None}, {"rank": 0}, {"rank": [1, -1]}, {"blocks": 2}, {"dropout": 1.0},
                  {"dropout": float("nan")}, {"rank": 2.5}, {"rank": True}):  # fmt: skip
        with pytest.raises(PeftError, match=f"Settings: {next(iter(wrong))} (must be|takes)"):
            Settings(**wrong)


def test_a_range_in_words() -> None:
    assert describe(Positive) == "a number" and describe(Positive, ranges=True) == "a number, above 0"
    assert describe(Annotated[int, Range(most=3)], ranges=True) == "a whole number, 3 or less"
    assert describe(Annotated[float, Range(above=0, below=1)], ranges=True) == "a number, in (0, 1)"
