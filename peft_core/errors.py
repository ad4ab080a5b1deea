"""Errors a user can mend: one sentence that says what is wrong and what to do about it."""

import difflib
from collections.abc import Iterable


class PeftError(ValueError):
    """A mistake in what came from outside: a name, a value, a file, a model."""


class NotMergeable(PeftError):
    """The method's change cannot be written into stock weights."""


def nearest(word: str, choices: Iterable[str]) -> str:
    """'' or ', did you mean "x"?' with the choice nearest to `word`."""
    found = difflib.get_close_matches(word, list(choices), n=1, cutoff=0.5)
    return f', did you mean "{found[0]}"?' if found else ""
