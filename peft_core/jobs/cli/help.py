"""What `--help` says: a command's options in words, from its annotations and docstring."""

from __future__ import annotations

import inspect
import shutil
import textwrap
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from peft_core.jobs.cli.command import Command
from peft_core.jobs.cli.line import argument_docs, split_line, summary
from peft_core.jobs.cli.options import is_choice, options_of, takes_many
from peft_core.values import defaults_of, describe

WIDTH, INDENT = 100, 26


def overview(program: str, commands: Mapping[str, Command]) -> str:
    """All commands of a program."""
    lines = [f"  {name:<8} {summary(each.function)}" for name, each in commands.items()]
    after = f"`{program} COMMAND --help` lists its options; `{program} --version` says the version."
    return "\n".join([f"usage: {program} COMMAND [options]", "", *lines, "", after])


def help_of(command: Command, program: str, argv: Sequence[str] = ()) -> str:
    """A command's options, those of the names on the line (`--method lora`) included."""
    choices = command.default_choices()
    choices |= {key: words[0] for key, words in split_line(argv)[0] if words and is_choice(command.hints.get(key))}
    for key, name in choices.items():
        command.hints[key].check_name(name, command.domain)
    about = {name.rstrip("_"): text for name, text in argument_docs(command.function).items()}
    lines: list[str] = []
    groups: list[str] = []
    for name, parameter in command.parameters.items():
        hint, chosen = command.hints[name], choices.get(name, "")
        if not is_choice(hint):
            flag = name.upper() if name == command.positional else f"--{name}"
            lines += _option(flag, about.get(name, ""), hint, parameter.default)
            continue
        if hint.named:
            lines += _option(f"--{name}", about.get(name, ""), None, parameter.default)
        if chosen or not hint.named:
            heading = f"--{name} {chosen}" if hint.named else about.get(name, name).rstrip(".")
            groups += ["", f"{heading}:"]
            groups += _options(name, hint.accepts(chosen), options_of(hint, chosen), hint.preset(chosen))
    ours = [("--config", "A YAML file or a run folder, whose settings flags change; repeated, later ones win."),
            ("--debug", "Show where in the program a mistake was found."),
            ("--wait", "Seconds that a hub of models or data has to answer (10).")]  # fmt: skip
    common = [line for flag, text in ours for line in _wrapped(flag, text)]
    words = [program, command.name]
    if command.positional is not None:
        many = takes_many(command.hints[command.positional])
        words.append(f"{command.positional.upper()} ..." if many else command.positional.upper())
    head = [f"usage: {' '.join(words)} [options]", "", summary(command.function), "", "options:"]
    return "\n".join([*head, *lines, *common, *groups])


def _options(group: str, target: Callable, shown: Mapping[str, Any], preset: Mapping[str, Any]) -> list[str]:
    about, defaults = argument_docs(target), defaults_of(target)
    return [
        line
        for name, hint in shown.items()
        for line in _option(f"--{group}.{name}", about.get(name, ""), hint, preset.get(name, defaults[name]))
    ]


def _option(flag: str, text: str, hint: Any, default: Any) -> list[str]:
    notes = [describe(hint, ranges=True)] if hint is not None else ["a name"]
    if default is inspect.Parameter.empty:
        notes.append("required")
    elif default is not None:
        notes.append(f"default {' '.join(map(str, default)) if isinstance(default, (list, tuple)) else default}")
    return _wrapped(flag, f"{text} ({'; '.join(notes)})".strip())


def _wrapped(flag: str, text: str) -> list[str]:
    width = min(WIDTH, max(60, shutil.get_terminal_size().columns))
    lines = textwrap.wrap(text, width - INDENT)
    head = f"  {flag}"
    first = [head] if len(head) > INDENT - 2 else [f"{head:<{INDENT}}{lines.pop(0)}"]
    return first + [" " * INDENT + line for line in lines]
