"""Text files from outside: lists, tables, captions and JSON, read in one way; what is wrong is told with the file's name."""

from __future__ import annotations

import codecs
import json
from pathlib import Path
from typing import Any

from peft_data.errors import DataError

LARGEST = 1 << 30
"""Bytes of a text file that are read at most."""
_UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


def read_text(path: Path, what: str = "a text file") -> str:
    """The text of a UTF-8 file, without its byte order mark, lines ended by a newline alone.

    Args:
        what: what it should be, for the message: "a list of pictures".

    Raises:
        DataError: it is not there, cannot be read, is above 1 GiB, or is in another encoding.
    """
    try:
        if not path.is_file():
            raise DataError(f"{path} cannot be read as {what} ({_absent(path)}): give a text file")
        if (size := path.stat().st_size) > LARGEST:
            raise DataError(f"{path} cannot be read as {what} ({size / 2**30:.1f} GiB): give a text file")
        raw = path.read_bytes()
    except OSError as error:
        raise DataError(
            f"{path} cannot be read as {what} ({error.strerror or error}): give a file that may be read"
        ) from error
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        found = "it is UTF-16" if raw.startswith(_UTF16) else f"byte {error.start} is no UTF-8"
        raise DataError(f"{path} cannot be read as {what} ({found}): save it as UTF-8") from error
    return text.replace("\r\n", "\n").replace("\r", "\n")


def read_lines(path: Path, what: str = "a text file") -> list[tuple[int, str]]:
    """The lines that are not blank, stripped, each with its number, counted from 1.

    Raises:
        DataError: as `read_text`.
    """
    lines = read_text(path, what).split("\n")
    return [(number, line.strip()) for number, line in enumerate(lines, 1) if line.strip()]


def read_json(path: Path, form: str = "") -> Any:
    """What a JSON file holds.

    Args:
        form: how it should look, for the message.

    Raises:
        DataError: as `read_text`, or it is no JSON, or nested too deep.
    """
    text = read_text(path, "a JSON file")
    try:
        return json.loads(text)
    except ValueError as error:
        remedy = f"it must be {form}" if form else "mend it, or fetch it again"
        raise DataError(f"{path} cannot be read (it is no json file, or damaged: {error}): {remedy}") from error
    except RecursionError as error:
        raise DataError(f"{path} is nested too deep to be read: mend it, or fetch it again") from error


def is_utf16(path: Path) -> bool:
    """Whether a file begins as UTF-16 does."""
    with open(path, "rb") as file:
        return file.read(2) in _UTF16


def is_utf8(name: str) -> bool:
    """Whether a file's name can be written down: names that are no UTF-8 hold surrogates."""
    return not any("\ud800" <= letter <= "\udfff" for letter in name)


def shown(name: str) -> str:
    """A name with the bytes that are no UTF-8 as `\\xe9`, so that it can be printed."""
    return name if is_utf8(name) else name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def _absent(path: Path) -> str:
    return "it is a folder" if path.is_dir() else "it is no file" if path.exists() else "there is no such file"
