"""What a user of the data formats can do wrong is told as a `DataError`."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence


class DataError(ValueError):
    """Something is wrong with the data or with how it was asked for: one sentence that also says the remedy."""


def nearest(word: str, choices: Iterable[str]) -> str:
    """The choice spelt most like `word`, as the end of a sentence: `" (did you mean 'digits'?)"`, or `""`."""
    by_lower = {choice.lower(): choice for choice in choices}
    found = difflib.get_close_matches(word.lower(), by_lower, n=1, cutoff=0.5)
    return f" (did you mean {by_lower[found[0]]!r}?)" if found else ""


def listing(lines: Sequence[str], limit: int = 50) -> str:
    """`lines` one below the other, indented, the first `limit` of them and a count of the rest."""
    rest = [f"… and {len(lines) - limit} more"] if len(lines) > limit else []
    return "".join(f"\n  {line}" for line in [*lines[:limit], *rest])
