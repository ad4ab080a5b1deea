"""Errors a user can mend: one sentence that says what is wrong and what to do about it."""

import difflib
from collections.abc import Collection, Iterable


class PeftError(ValueError):
    """A mistake in what came from outside: a name, a value, a file, a model."""


class NotMergeable(PeftError):
    """The method's change cannot be written into stock weights."""


def nearest(word: str, choices: Iterable[str]) -> str:
    """'' or ', did you mean "x"?' with the choice that `word` may be a slip of: a part of it, or spelt nearly alike."""
    choices = list(choices)
    for found in choices:
        if found.lower() == word.strip().lower():
            return f', did you mean "{found}"?'
    for found in difflib.get_close_matches(word, choices, n=5, cutoff=0.5):
        if (len(word) > 2 and word in found) or _slips(word, found) <= max(1, round(0.3 * max(len(word), len(found)))):
            return f', did you mean "{found}"?'
    return ""


def _slips(one: str, other: str) -> int:
    """Letters that are missing, added, wrong, or exchanged with their neighbour."""
    rows = [list(range(len(other) + 1))]
    for i, a in enumerate(one, 1):
        row = [i]
        for j, b in enumerate(other, 1):
            best = min(rows[-1][j] + 1, row[-1] + 1, rows[-1][j - 1] + (a != b))
            if i > 1 and j > 1 and a == other[j - 2] and b == one[i - 2]:
                best = min(best, rows[-2][j - 2] + 1)
            row.append(best)
        rows.append(row)
    return rows[-1][-1]


def no_step(
    method: str, family: str, kind: str, alone: bool, tower: str | None, known: Collection[str | None]
) -> PeftError:
    """What to say where a family tells of no residual steps of a kind in a tower; `alone`: of none at all, `known`: towers where
    it does."""
    part = f"the {tower} tower of this" if tower else "this"
    what = "is known by its layers alone" if alone else f"says of no {kind} where it can be joined"
    other = f', or tower="{next(iter(known))}"' if known else ""
    return PeftError(
        f"{method} joins residual steps, and {part} {family} {what}: choose a method that changes weights{other}."
    )
