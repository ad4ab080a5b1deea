"""What a program hands in for its page."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from peft_core.errors import PeftError


@dataclass(frozen=True)
class Field:
    """Something to fill in.

    Args:
        option: the command's option that it stands for, `epochs`.
        choices: to choose from; any other word may be written.
        number: it holds a number.
        info: a few words under it.
    """

    option: str
    label: str
    value: str | float | None = None
    choices: tuple[str, ...] = ()
    number: bool = False
    info: str = ""


class Shown(NamedTuple):
    """What a run gives: pictures with a caption each, and a table."""

    pictures: list[tuple[Any, str]]
    columns: list[str]
    rows: list[list[str]]


@dataclass(frozen=True)
class Part:
    """A program's page.

    Args:
        program: `vision_peft`.
        module: whose `main` starts the program.
        about: a sentence under the heading.
        takes_pictures: a run is used on pictures.
        verb: what it does with them: `Predict`.
        use: (loaded run, paths of pictures, values of `use_fields` by option) -> what is shown.
        use_fields: what else a use may say.
        fit_fields: what a training may say besides its data and its name.
    """

    program: str
    module: str
    about: str
    takes_pictures: bool
    verb: str
    use: Callable[[Any, Sequence[str], Mapping[str, Any]], Shown]
    use_fields: tuple[Field, ...]
    fit_fields: tuple[Field, ...]


CHOSEN = 24
"""Pictures that a page shows at once."""


def predictions(run: Any, pictures: Sequence[str], top: int) -> Shown:
    """What a run says of pictures, as `predict` has it; the first `CHOSEN` pictures are shown, the table has all.

    Raises:
        PeftError: none of them can be read, or the run's predictions are no rows of a table.
    """
    from peft_core.jobs.runs.use import Ready  # with torch

    ready = Ready(run, pictures)
    good = list(ready)
    if not good:
        raise PeftError(ready.bad[0] if ready.bad else "drop a picture first.")
    shown, rows = list[tuple[Any, str]](), list[list[str]]()
    for path, found in zip(ready.read, run.stream(good), strict=True):
        cells = run.cells(found, top)
        shown.append((path, " ".join(_in_words(run.columns, cells[0], 0))))
        rows += [[name_of(path), *_in_words(run.columns, each, 1)] for each in cells]
    rows += [["", sentence, *[""] * (len(run.columns) - 1)] for sentence in ready.bad]
    return Shown(shown[:CHOSEN], ["picture", *run.columns], rows)


def _in_words(columns: Sequence[str], cells: Sequence[str], digits: int) -> list[str]:
    """A row with its probabilities, where it has some, in per cent."""
    named = zip(columns, cells, strict=True)
    return [f"{100 * float(cell):.{digits}f} %" if name == "probability" and cell else cell for name, cell in named]


def name_of(path: str) -> str:
    return path.replace("\\", "/").rpartition("/")[2]
