"""Errors a user can mend: one sentence that says what is wrong and what to do about it."""

import difflib
from collections.abc import Iterable


class PeftError(ValueError):
    """A mistake in what came from outside: a name, a value, a file, a model."""


class NotMergeable(PeftError):
    """The method's change cannot be written into stock weights."""


def nearest(word: str, choices: Iterable[str]) -> str:
    """'' or ', did you mean "x"?' with the choice that `word` may be a slip of: a part of it, or spelt nearly alike."""
    for found in difflib.get_close_matches(word, list(choices), n=5, cutoff=0.5):
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
