"""Options that several functions take alike: said once, with their help, and taken by each as `**common`."""

from __future__ import annotations

import functools
import inspect
import typing
from collections.abc import Callable, Collection
from typing import Any


def takes(*others: Callable, but: Collection[str] = (), **defaults: Any) -> Callable[[Callable], Callable]:
    """Gives a function, which takes them as `**common`, the arguments of the others: signature, annotations and what the
    docstrings' `Args` say, all but `but`. What it says itself stands over what they say. Of several the first one's argument
    is taken, with the last one's words; `defaults` are its own."""

    def wrap(function: Callable) -> Callable:
        own = inspect.signature(function)
        parameters = {key: each for key, each in own.parameters.items() if each.kind is not each.VAR_KEYWORD}
        annotations = typing.get_type_hints(function, include_extras=True)
        taken: dict[str, inspect.Parameter] = {}
        for other in others:
            known = typing.get_type_hints(other, include_extras=True)
            for key, each in inspect.signature(other).parameters.items():
                if key not in parameters and key not in taken and key not in but:
                    default = defaults.get(key, each.default)
                    taken[key] = each.replace(kind=each.KEYWORD_ONLY, default=default, annotation=known[key])
        filled = {key: each.default for key, each in taken.items() if each.default is not each.empty}

        @functools.wraps(function)
        def taking(*positional: Any, **given: Any) -> Any:
            return function(*positional, **filled | given)

        before, argued, after = _parts(function)
        lines = [each for each in (*(_parts(other)[1] for other in others), argued) if each]
        taking.__signature__ = own.replace(parameters=[*parameters.values(), *taken.values()])  # type: ignore[attr-defined]
        taking.__annotations__ = annotations | {key: each.annotation for key, each in taken.items()}
        taking.__doc__ = "\n\n".join([*before, "Args:\n" + "\n".join(lines), *after])
        return taking

    return wrap


def arguments(found: dict[str, Any]) -> dict[str, Any]:
    """The `locals()` of a function's first line as one mapping: what it took as `**common` is among the others."""
    return {key: value for key, value in found.items() if key != "common"} | found["common"]


def _parts(function: Callable) -> tuple[list[str], str, list[str]]:
    """A docstring's paragraphs before `Args`, what stands below it, and those after it."""
    parts = inspect.cleandoc(function.__doc__ or "").split("\n\n")
    place = next((number for number, part in enumerate(parts) if part.startswith("Args:\n")), None)
    if place is None:
        place = next((number for number, part in enumerate(parts) if part.startswith("Raises:")), len(parts))
        return parts[:place], "", parts[place:]
    return parts[:place], parts[place].removeprefix("Args:\n"), parts[place + 1 :]
