"""Types and ranges of settings, declared once as annotations, which judge command line, YAML, cards and Python calls."""

from __future__ import annotations

import collections.abc
import dataclasses
import datetime
import functools
import inspect
import math
import numbers
import re
import types
import typing
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from peft_core.errors import PeftError, nearest


@dataclass(frozen=True)
class Range:
    """Where a number may lie: least ≤ x ≤ most, above < x < below, a multiple of `multiple`."""

    least: float | None = None
    most: float | None = None
    _: dataclasses.KW_ONLY
    above: float | None = None
    below: float | None = None
    multiple: int | None = None

    def __contains__(self, value: float) -> bool:
        return (
            (self.least is None or value >= self.least)
            and (self.most is None or value <= self.most)
            and (self.above is None or value > self.above)
            and (self.below is None or value < self.below)
            and (self.multiple is None or value % self.multiple == 0)
        )

    def __str__(self) -> str:
        low, high = self.above if self.least is None else self.least, self.below if self.most is None else self.most
        words = []
        if low is not None and high is not None:
            ends = "(" if self.least is None else "[", ")" if self.most is None else "]"
            words.append(f"in {ends[0]}{low:,}, {high:,}{ends[1]}")
        elif low is not None:
            words.append(f"above {low:,}" if self.least is None else f"{low:,} or more")
        elif high is not None:
            words.append(f"below {high:,}" if self.most is None else f"{high:,} or less")
        return " and ".join(words + ([f"a multiple of {self.multiple}"] if self.multiple else []))


Count = Annotated[int, Range(1)]
Whole = Annotated[int, Range(0)]
Bits = Annotated[int, Range(1, 8)]
Positive = Annotated[float, Range(above=0)]
NotNegative = Annotated[float, Range(0)]
Share = Annotated[float, Range(0, 1)]
Rate = Annotated[float, Range(0, below=1)]
Seed = Annotated[int, Range(0, 2**32 - 1)]
Widths = Count | Sequence[Whole]
"""A width everywhere, or one a block where 0 means absent."""


class Unfit(Exception):
    """A value that its annotation does not take. Never leaves this file."""


def typed(value: Any, hint: Any, what: str) -> Any:
    """`value` as its annotation has it: text as a number, numpy's numbers as Python's. Raises PeftError, naming the setting
    `what`, for another type, a number out of its range, NaN, infinity."""
    try:
        return _typed(value, hint, text=True)
    except Unfit:
        raise PeftError(refusal(value, hint, what)) from None


def refusal(value: Any, hint: Any, what: str) -> str:
    """The sentence for a value that `hint` does not take."""
    shown = " ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
    shown = shown if len(shown) <= 80 else f"{shown[:79]}…"
    for part in parts_of(hint):
        if typing.get_origin(part) is Annotated and _takes(value, typing.get_args(part)[0]):
            return f"{what} must be {' and '.join(map(str, _ranges(part)))}, not {shown}."
    likely = nearest(str(value), [str(word) for part in parts_of(hint) for word in _words(part)])
    return f'{what} takes {describe(hint)}, not "{shown}"{likely}.'


def _takes(value: Any, hint: Any) -> bool:
    try:
        _typed(value, hint, text=True)
    except Unfit:
        return False
    return True


def _ranges(hint: Any) -> list[Range]:
    return [note for note in typing.get_args(hint)[1:] if isinstance(note, Range)]


def check_fields(instance: Any) -> None:
    """Judges a frozen dataclass's fields by their annotations, and makes numpy's numbers Python's, lists and ranges tuples.

    Raises:
        PeftError: another type, a number out of its range.
    """
    of = getattr(instance, "name", type(instance).__name__)
    for name, hint in hints_of(type(instance)).items():
        value, parts = getattr(instance, name), parts_of(hint)
        if isinstance(value, str) and str not in parts and any(is_list(part) for part in parts):
            value = [value]
        try:
            found = _typed(value, hint, text=False)
        except Unfit:
            raise PeftError(f"{of}: {refusal(value, hint, name)}") from None
        object.__setattr__(instance, name, tuple(found) if isinstance(found, list) else found)


@functools.cache
def _hints(target: Callable) -> dict[str, Any]:
    inner = target.__init__ if isinstance(target, type) else target
    known = typing.get_type_hints(inner, include_extras=True)
    kinds = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
    parameters = inspect.signature(target).parameters.items()
    return {name: known.get(name, Any) for name, parameter in parameters if parameter.kind not in kinds}


def hints_of(target: Callable) -> dict[str, Any]:
    """Setting → annotation, ranges included, of a function's, class's or dataclass's arguments."""
    return dict(_hints(target))


def defaults_of(target: Callable) -> dict[str, Any]:
    """Setting → what it is where nothing is said; `inspect.Parameter.empty` where something must be."""
    made = {
        each.name: each.default_factory
        for each in (dataclasses.fields(target) if dataclasses.is_dataclass(target) else ())
        if each.default_factory is not dataclasses.MISSING
    }
    parameters = inspect.signature(target).parameters  # type: ignore
    return {name: made[name]() if name in made else parameters[name].default for name in _hints(target)}


def parts_of(hint: Any) -> tuple[Any, ...]:
    """The members of a union, each as it stands; a hint that is none by itself."""
    union = typing.get_origin(hint) in (typing.Union, types.UnionType)
    return tuple(inner for part in typing.get_args(hint) for inner in parts_of(part)) if union else (hint,)


def is_list(hint: Any) -> bool:
    """Whether a hint, no union, is of lists."""
    kind = typing.get_origin(hint) or hint
    return isinstance(kind, type) and issubclass(kind, collections.abc.Sequence) and not issubclass(kind, str)


def _words(hint: Any) -> tuple[Any, ...]:
    return typing.get_args(hint) if typing.get_origin(hint) is Literal else ()


def _typed(value: Any, hint: Any, text: bool) -> Any:
    if getattr(value, "ndim", None) == 0:  # a number of numpy's or torch's
        value = value.item()
    parts = parts_of(hint)
    if text and value == "null" and type(None) in parts:
        return None
    if len(parts) > 1:
        # what is of the type already stays: "4" of `str | int` is a word, 4 a number; one word is no list where a single
        # value may stand
        single = any(part is not type(None) and not is_list(part) for part in parts)
        alone = single and isinstance(value, str) and not value.startswith("[")
        for strict in (False, True) if text else (False,):
            for part in sorted(parts, key=lambda part: part is str) if strict else parts:
                if alone and is_list(part):
                    continue
                try:
                    return _typed(value, part, strict)
                except Unfit:
                    continue
        raise Unfit
    if typing.get_origin(hint) is Annotated:
        value = _typed(value, typing.get_args(hint)[0], text)
        if any(value not in allowed for allowed in _ranges(hint)):
            raise Unfit
        return value
    if typing.get_origin(hint) is Literal:
        return _chosen(value, typing.get_args(hint))
    if is_list(hint):
        return _list(value, hint, text)
    read = _READERS.get(hint)
    if read is not None:
        return read(value, text)
    if isinstance(hint, type) and not isinstance(value, hint):
        raise Unfit
    return value


def _chosen(value: Any, words: tuple[Any, ...]) -> Any:
    if isinstance(value, bool) and value not in words:  # YAML reads the words on and off as true and false
        value = "on" if value else "off"
    for word in words:
        if type(word) is type(value) and word == value:
            return word
    for word in words:
        if str(word) == value:
            return word
    raise Unfit


def _list(value: Any, hint: Any, text: bool) -> list[Any]:
    if text and isinstance(value, str):
        value = _bracketed(value) if value.startswith("[") else [value]
    value = value.tolist() if hasattr(value, "tolist") else value
    if isinstance(value, (str, bytes)) or not isinstance(value, collections.abc.Sequence):
        raise Unfit
    inner = typing.get_args(hint)
    fixed = typing.get_origin(hint) is tuple and inner and inner[-1] is not ...
    if fixed and len(inner) != len(value):
        raise Unfit
    each = inner if fixed else [inner[0] if inner else Any] * len(value)
    return [_typed(one, kind, text) for one, kind in zip(value, each, strict=True)]


def _bracketed(value: str) -> Any:
    import yaml

    try:
        return yaml.safe_load(value)
    except (yaml.YAMLError, RecursionError):
        raise Unfit from None


def _whole(value: Any, text: bool) -> int:
    if text and isinstance(value, str) and re.fullmatch(r"[+-]?\d{1,40}", value.strip()):
        return int(value)
    if isinstance(value, numbers.Integral) and not isinstance(value, bool):
        return int(value)
    raise Unfit


def _number(value: Any, text: bool) -> float:
    if text and isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            raise Unfit from None
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise Unfit
    value = float(value) if not isinstance(value, int) or abs(value) < 1 << 1000 else math.inf  # type: ignore
    if not math.isfinite(value):
        raise Unfit
    return value


def _truth(value: Any, text: bool) -> bool:
    if isinstance(value, bool):
        return value
    if text and isinstance(value, str) and value.lower() in ("true", "false"):
        return value.lower() == "true"
    raise Unfit


def _word(value: Any, text: bool) -> str:
    if isinstance(value, str):
        return value
    if text and isinstance(value, (int, float, datetime.date)) and not isinstance(value, bool):  # as YAML reads them
        return str(value)
    raise Unfit


def _nothing(value: Any, text: bool) -> None:
    if value is None or (text and value == "null"):
        return None
    raise Unfit


_READERS: dict[Any, Callable[[Any, bool], Any]] = {
    int: _whole, float: _number, bool: _truth, str: _word, type(None): _nothing, Any: lambda value, text: value,
}  # fmt: skip
_NAMES = {float: "a number", int: "a whole number", bool: "true or false", str: "a word", type(None): "null"}


def describe(hint: Any, ranges: bool = False) -> str:
    """A type in words: "a number" (with `ranges` "a number, above 0"), "one of a, b"."""
    parts = [part for part in parts_of(hint) if part is not type(None)]
    if len(parts) > 1:
        return " or ".join(dict.fromkeys(describe(part, ranges) for part in parts))
    (part,) = parts or (hint,)
    if typing.get_origin(part) is Annotated:
        return ", ".join([describe(typing.get_args(part)[0]), *(map(str, _ranges(part)) if ranges else ())])
    if typing.get_origin(part) is Literal:
        words = typing.get_args(part)
        return "one of " * (len(words) > 1) + ", ".join(str(word) for word in words)
    if is_list(part):
        inner = [describe(each, ranges) for each in typing.get_args(part) if each is not ...]
        return "a list, each " + " or ".join(dict.fromkeys(inner)) if inner else "a list"
    return _NAMES.get(part, getattr(part, "__name__", str(part)))
