"""Every number of every command has a range, and what lies outside is told in a sentence before any work."""

import typing
from collections.abc import Iterator
from typing import Annotated, Any

import pytest

from clip_peft.commands import commands as clip
from clip_peft.commands import main as clip_main
from diffusion_peft.commands.main import commands as diffusion
from diffusion_peft.commands.main import main as diffusion_main
from peft_core.jobs.cli.command import Command
from peft_core.jobs.cli.options import is_choice, options_of
from peft_core.registry import find_method, method_files
from peft_core.values import Range, hints_of, parts_of
from vision_peft.commands import commands as vision
from vision_peft.commands import main as vision_main

PROGRAMS = {
    "vision_peft": (vision, vision_main),
    "clip_peft": (clip, clip_main),
    "diffusion_peft": (diffusion, diffusion_main),
}
ANY = {"guidance", "scale", "scales", "flow.mean", "slider.guidance", "slider.strength", "evaluation.guidance",
       "evaluation.scales", "trainer.devices"}  # fmt: skip
"""Options for which every number means something."""


def numbers(hint: Any) -> Iterator[tuple[type, list[Range]]]:
    """The kinds of number in an annotation and the ranges of each."""
    for part in parts_of(hint):
        inner = typing.get_args(part)
        if typing.get_origin(part) is Annotated:
            if inner[0] in (int, float):
                yield inner[0], [note for note in inner[1:] if isinstance(note, Range)]
        elif part in (int, float):
            yield part, []
        elif inner and typing.get_origin(part) is not typing.Literal:
            for each in inner:
                yield from numbers(each)


def options(command: Command) -> Iterator[tuple[str, Any]]:
    for name, hint in command.hints.items():
        if not is_choice(hint):
            yield name, hint
        elif not hint.named:
            yield from ((f"{name}.{option}", inner) for option, inner in options_of(hint, "").items())


COMMANDS = [(program, command) for program, (commands, _) in PROGRAMS.items() for command in commands()]


@pytest.mark.parametrize(("program", "command"), COMMANDS, ids=lambda each: getattr(each, "name", each))
def test_every_number_has_a_range(program: str, command: Command) -> None:
    without = [name for name, hint in options(command) if name not in ANY
               for _, ranges in numbers(hint) if not ranges]  # fmt: skip
    assert not without


@pytest.mark.parametrize("name", sorted(method_files()))
def test_every_number_of_every_method_has_a_range(name: str) -> None:
    fields = hints_of(find_method(name))
    assert not [key for key, hint in fields.items() for _, ranges in numbers(hint) if not ranges]


def outside(kind: type, ranges: list[Range]) -> list[str]:
    """Numbers just outside of ranges, and what is no number."""
    found = ["nan", "inf", "-inf", "1e999"] if kind is float else ["1.5", "x"]
    for each in ranges:
        low = each.above if each.least is None else each.least - 1
        high = each.below if each.most is None else each.most + 1
        found += [str(kind(edge)) for edge in (low, high) if edge is not None]
    return found


CASES = [
    (program, f"{command.name} --{name} {value}")
    for program, command in COMMANDS
    for name, hint in options(command)
    for kind, ranges in list(numbers(hint))[:1]
    if name not in ANY and len(list(numbers(hint))) == 1
    for value in outside(kind, ranges)
]


@pytest.mark.parametrize("program", PROGRAMS)
def test_numbers_outside_are_told_before_any_work(
    program: str, capsys: pytest.CaptureFixture, monkeypatch, tmp_path
) -> None:
    monkeypatch.chdir(tmp_path)
    lines = [line for each, line in CASES if each == program]
    assert len(lines) > 50
    for line in lines:
        words = line.split()
        assert PROGRAMS[program][1]([*words, *needed(program, words)]) == 2, line
        said = capsys.readouterr()
        assert words[1] in said.err and (" must be " in said.err or " takes " in said.err), (line, said.err)
        assert len(said.err.splitlines()) == 1 and not said.out, line
    assert not list(tmp_path.iterdir())


def needed(program: str, words: list[str]) -> list[str]:
    """What the command wants besides."""
    (command,) = (command for each, command in COMMANDS if (each, command.name) == (program, words[0]))
    found: list[str] = []
    for name, parameter in command.parameters.items():
        if parameter.default is parameter.empty and f"--{name}" not in words:
            choices = (
                typing.get_args(command.hints[name]) if typing.get_origin(command.hints[name]) is typing.Literal else ()
            )
            found += [f"--{name}", str(choices[0]) if choices else "digits" if name == "data" else "x"]
    return found
