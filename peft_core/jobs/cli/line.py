"""Words of a command line and YAML files as settings."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from peft_core.errors import PeftError
from peft_core.files import read_yaml
from peft_core.jobs.cli.options import takes_many
from peft_core.values import describe


def split_line(argv: Sequence[str]) -> tuple[list[tuple[str, list[str]]], list[str]]:
    """(option, the words after it) in order, and the words before the first option and behind `--`."""
    stop = argv.index("--") if "--" in argv else len(argv)
    flags: list[tuple[str, list[str]]] = []
    loose: list[str] = []
    for word in argv[:stop]:
        if word.startswith("--"):
            key, equals, value = word[2:].partition("=")
            flags.append((key, [value] if equals else []))
        elif flags:
            flags[-1][1].append(word)
        else:
            loose.append(word)
    return flags, [*loose, *argv[stop + 1 :]]


def take(key: str, words: list[str], hint: Any) -> tuple[Any, list[str]]:
    """How many of the words after an option are its value: (value, the others)."""
    if hint is bool:
        is_value = bool(words) and words[0].lower() in ("true", "false")
        return (words[0].lower() == "true", words[1:]) if is_value else (True, words)
    if not words:
        raise PeftError(f"--{key} needs a value ({describe(hint)}).")
    if takes_many(hint):
        whole = len(words) == 1 and (words[0].startswith("[") or words[0] == "null")
        return (words[0] if whole else words), []
    several = len(words) > 1 and takes_many(hint, also=True)
    return (words, []) if several else (words[0], words[1:])


def read_config(value: str, program: str, command_name: str) -> dict[str, Any]:
    """The settings in a YAML file or in the run folder `value`.

    Raises:
        PeftError: no such file, or the config of another command or program.
    """
    path = Path(value).expanduser()
    path = path / "config.yaml" if path.is_dir() else path
    if not path.is_file():
        raise PeftError(f"config file {path} does not exist: give a YAML file or a run folder.")
    content = read_yaml(path, "give another --config")
    made_by = str(content.pop("command", command_name)).split() or [""]
    if made_by[-1] != command_name or (len(made_by) > 1 and program and made_by[0] != program):
        raise PeftError(f"{path} is a config of `{' '.join(made_by)}`, not of `{f'{program} {command_name}'.strip()}`.")
    return content


def summary(function: Callable) -> str:
    return inspect.cleandoc(function.__doc__ or "").split("\n\n")[0].replace("\n", " ")


def argument_docs(function: Callable) -> dict[str, str]:
    """Argument -> what the docstring's `Args:` says about it."""
    block = inspect.cleandoc(function.__doc__ or "").partition("Args:\n")[2].partition("\n\n")[0]
    found: dict[str, str] = {}
    names: list[str] = []
    for line in block.splitlines():
        start = re.match(r" {0,4}(\w+(?:, \w+)*): (.*)", line)
        if start:
            names = start[1].split(", ")
            found |= dict.fromkeys(names, start[2].strip())
        else:
            found |= {name: f"{found[name]} {line.strip()}".strip() for name in names}
    return found
