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


def help_of(command: Command, program: str, argv: Sequence[str] = (), everything: bool = False) -> str:
    """A command's options, those of the names on the line (`--method lora`) included; `everything` with those that few want."""
    choices = command.default_choices()
    choices |= {key: words[0] for key, words in split_line(argv)[0] if words and is_choice(command.hints.get(key))}
    for key, name in choices.items():
        command.hints[key].check_name(name, command.domain)
    about = {name.rstrip("_"): text for name, text in argument_docs(command.function).items()}
    sections: list[tuple[str, list[str]]] = []
    for heading, names in _in_groups(command, everything):
        own: list[str] = []
        inner: list[tuple[str, list[str]]] = []
        for name in names:
            hint, chosen, default = command.hints[name], choices.get(name, ""), command.parameters[name].default
            if not is_choice(hint):
                flag = name.upper() if name == command.positional else f"--{name}"
                own += _option(flag, about.get(name, ""), hint, default)
                continue
            if hint.named:
                own += _option(f"--{name}", about.get(name, ""), None, default)
            if hint.brief and not everything:
                own += [] if hint.named else _wrapped(f"--{name}.…", about.get(name, ""))
            elif chosen or not hint.named:
                title = f"--{name} {chosen}" if hint.named else about.get(name, name).rstrip(".")
                inner.append(
                    (title, _options(name, hint.accepts(chosen), options_of(hint, chosen), hint.preset(chosen)))
                )
        sections += [(heading, own), *inner]
    ours = [("--config", "A YAML file or a run folder, whose settings flags change; repeated, later ones win."),
            ("--debug", "Show where in the program a mistake was found."),
            ("--wait", "Seconds that a hub of models or data has to answer (10).")]  # fmt: skip
    if command.groups and not everything:
        ours.append(("--help all", "What is left out here: options that few want."))
    sections.append(("every command" if command.groups else "", [line for each in ours for line in _wrapped(*each)]))
    words = [program, command.name]
    if command.positional is not None:
        many = takes_many(command.hints[command.positional])
        words.append(f"{command.positional.upper()} ..." if many else command.positional.upper())
    lines = [f"usage: {' '.join(words)} [options]", "", *textwrap.wrap(summary(command.function), WIDTH)]
    for heading, shown in sections:
        if shown:
            lines += [*(["", f"{heading}:"] if heading else []), *shown]
    return "\n".join(lines)


def _in_groups(command: Command, everything: bool) -> list[tuple[str, list[str]]]:
    """(heading, options) in the order in which they are shown."""
    if not command.groups:
        return [("options", list(command.parameters))]
    groups = [
        (heading, [name for name in names if name in command.parameters]) for heading, names in command.groups.items()
    ]
    placed = {name for _, names in groups for name in names}
    rest = [name for name in command.parameters if name not in placed]
    brief = [name for name in rest if is_choice(command.hints[name]) and command.hints[name].brief]
    return [*groups, ("more", rest if everything else brief)]


def _options(group: str, target: Callable, shown: Mapping[str, Any], preset: Mapping[str, Any]) -> list[str]:
    about, defaults = argument_docs(target), defaults_of(target)
    return [
        line
        for name, hint in shown.items()
        for line in _option(f"--{group}.{name}", about.get(name, ""), hint, preset.get(name, defaults[name]))
    ]


def _option(flag: str, text: str, hint: Any, default: Any) -> list[str]:
    plain = hint is bool or describe(hint) == "a word" if hint is not None else True
    notes = [] if plain else [describe(hint, ranges=True)]
    if default is inspect.Parameter.empty:
        notes.append("required")
    elif default is not None and default is not False:
        notes.append(f"default {' '.join(map(str, default)) if isinstance(default, (list, tuple)) else default}")
    return _wrapped(flag, (f"{text} ({'; '.join(notes)})" if notes else text).strip())


def _wrapped(flag: str, text: str) -> list[str]:
    width = min(WIDTH, max(60, shutil.get_terminal_size().columns))
    lines = textwrap.wrap(text, width - INDENT) or [""]
    head = f"  {flag}"
    first = [head] if len(head) > INDENT - 2 else [f"{head:<{INDENT}}{lines.pop(0)}"]
    return first + [" " * INDENT + line for line in lines]
