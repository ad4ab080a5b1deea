"""The command line as the signature of functions."""

import importlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import pytest

from peft_core.errors import PeftError, nearest
from peft_core.jobs.cli import listing
from peft_core.jobs.cli.command import Command, command
from peft_core.jobs.cli.help import help_of
from peft_core.jobs.cli.main import main
from peft_core.jobs.cli.options import Choice
from peft_core.jobs.hub.reach import WAIT, deadline


@dataclass(frozen=True, kw_only=True)
class Round:
    """A round thing.

    Args:
        radius: How far it is from its centre to its rim.
    """

    radius: int | Sequence[int] = 8
    parts: Sequence[str] | None = None


@dataclass(frozen=True, kw_only=True)
class Square:
    side: float = 1.0


class Shape(Choice):
    @classmethod
    def accepts(cls, name: str) -> Callable:
        known = {"round": Round, "large": Round, "square": Square}
        if name not in known:
            raise PeftError(f"no shape {name}.")
        return known[name]

    @classmethod
    def preset(cls, name: str) -> dict:
        return {"radius": 99} if name == "large" else {}


@pytest.fixture
def calls() -> list[dict]:
    return []


@pytest.fixture
def commands(calls: list[dict]) -> list[Command]:
    @command("vision")
    def draw(
        *,
        paper: str,
        shape: Shape = "round",
        size: float = 1e-3,
        fill: bool = False,
        mode: Literal["ink", "chalk"] = "ink",
        colours: list[str] | None = None,
        note: str | None = None,
        margins: tuple[int, int] = (1, 1),
    ) -> None:
        """Draw a shape.

        Args:
            paper: What to draw on.
            size: How large.
        """
        calls.append(locals())

    @command("vision")
    def show(pictures: list[str], *, frame: str = "wood", methods: list[str] | None = None) -> int:
        """Show pictures."""
        calls.append(locals())
        return 3

    return [draw, show]


@pytest.fixture
def run(commands: list[Command], calls: list[dict], capsys: pytest.CaptureFixture) -> Callable[[str], dict | str]:
    """The arguments that a line calls a command with, or what it says instead."""

    def run(line: str) -> dict | str:
        calls.clear()
        code = main("art", commands, line.split())
        said = capsys.readouterr()
        if calls:
            return calls[0]
        assert code == (2 if said.err else 0)
        return said.err.removeprefix("art: ").strip() or said.out

    return run


def test_values_are_typed(run) -> None:
    got = run("draw --paper 7 --size 1e-2 --fill --mode chalk --note null --margins 2 3")
    assert got["paper"] == "7" and got["size"] == 0.01 and got["fill"] is True and got["mode"] == "chalk"
    assert got["note"] is None and tuple(got["margins"]) == (2, 3)
    assert got["shape"] == Shape("round", {"radius": 8, "parts": None})
    assert run("draw --paper=a=b --fill false --size=-1")["paper"] == "a=b"
    assert run("draw --paper x --size 1 --size 2")["size"] == 2.0


def test_lists(run) -> None:
    assert run("show a.png b/ --frame gold")["pictures"] == ["a.png", "b/"]
    assert run("show --frame gold a.png b/")["pictures"] == ["a.png", "b/"]
    assert run("show a.png --frame gold b/")["pictures"] == ["a.png", "b/"]
    assert run("show a.png --methods lora vpt")["methods"] == ["lora", "vpt"]
    got = run("show --methods lora vpt -- a.png --odd.png")
    assert (got["methods"], got["pictures"]) == (["lora", "vpt"], ["a.png", "--odd.png"])
    assert run("draw --paper x -- y") == '"y" belongs to no option: see `draw --help`.'
    assert run("draw --paper x --colours a:0.8 --colours b")["colours"] == ["a:0.8", "b"]
    assert run("draw --paper x --colours [a,b]")["colours"] == ["a", "b"]


def test_a_name_brings_its_options(run) -> None:
    assert run("draw --paper x --shape square --shape.side 2")["shape"] == Shape("square", {"side": 2.0})
    assert run("draw --paper x --shape large")["shape"].options["radius"] == 99
    got = run("draw --paper x --shape large --shape.radius 4 5 --shape.parts rim")
    assert got["shape"] == Shape("large", {"radius": [4, 5], "parts": ["rim"]})
    assert run("draw --paper x --shape.radius 4")["shape"].options["radius"] == 4


def test_files_then_flags(run, tmp_path) -> None:
    (tmp_path / "a.yaml").write_text("paper: a\nsize: 1e-1\nshape: {name: square, side: 3}\ncolours: [x]\n")
    (tmp_path / "b.yaml").write_text("command: art draw\nsize: 0.5\n")
    got = run(f"draw --size 0.7 --config {tmp_path}/a.yaml --config {tmp_path}/b.yaml")
    assert (got["paper"], got["size"], got["shape"], got["colours"]) == (
        "a",
        0.7,
        Shape("square", {"side": 3.0}),
        ["x"],
    )
    assert run(f"draw --config {tmp_path}/a.yaml --config {tmp_path}/b.yaml")["size"] == 0.5
    assert run(f"draw --config {tmp_path}/a.yaml")["size"] == 0.1
    changed = run(f"draw --config {tmp_path}/a.yaml --shape round")["shape"]
    assert changed == Shape("round", {"radius": 8, "parts": None})  # the square's side does not come along


def test_python_calls_it_too(commands: list[Command], calls: list[dict]) -> None:
    draw, show = commands
    draw(paper="x", shape={"name": "square", "side": 2}, size=3)
    assert calls[0]["shape"] == Shape("square", {"side": 2.0}) and calls[0]["size"] == 3.0
    assert show(["a"], frame="gold") == 3 and calls[1]["pictures"] == ["a"]
    draw(paper="x", shape=Shape("large"))
    assert calls[2]["shape"].options["radius"] == 99
    with pytest.raises(PeftError, match="unknown option --sizes"):
        draw(paper="x", sizes=3)


@pytest.mark.parametrize(
    ("line", "sentence"),
    {
        "darw": 'unknown command "darw", did you mean "draw"? (there are: draw, show).',
        "draw": "draw needs --paper (a word): see `draw --help`.",
        "draw --pape x": 'unknown option --pape, did you mean "--paper"?',
        "draw --paper x y": '"y" belongs to no option: see `draw --help`.',
        "draw --paper": "--paper needs a value (a word).",
        "draw --paper x --size large": '--size takes a number, not "large".',
        "draw --paper x --mode chlk": '--mode takes one of ink, chalk, not "chlk", did you mean "chalk"?',
        "draw --paper x --shape circle": "no shape circle.",
        "draw --paper x --shape.radiu 1": 'unknown option --shape.radiu, did you mean "--shape.radius"? '
        "(its options of round: radius, parts).",
        "draw --paper x --shape square --shape.radius 1": "unknown option --shape.radius "
        "(its options of square: side).",
        "draw --paper x --shape.radius wide": "--shape.radius takes a whole number or a list, each a whole number, "
        'not "wide".',
        "draw --paper x --margins 1": '--margins takes a list, each a whole number, not "1".',
        "draw --paper x --config nowhere": "config file nowhere does not exist: give a YAML file or a run folder.",
        "show": "show needs pictures (a list, each a word): see `show --help`.",
    }.items(),
)
def test_mistakes(run, line: str, sentence: str) -> None:
    assert run(line) == sentence


def test_help(run) -> None:
    assert "draw     Draw a shape." in run("") and run("--help") == run("")
    shown = run("draw --help")
    assert "usage: art draw [options]" in shown and "What to draw on. (required)" in shown
    assert "--shape.radius" in shown and "How far it is from its centre to its rim." in shown
    assert "--shape.side" in run("draw --shape square --help")
    assert "usage: art show PICTURES ... [options]" in run("show -h")


def test_debug_and_the_unforeseen(commands: list[Command]) -> None:
    @command("vision")
    def crash() -> None:
        """Fault."""
        raise ZeroDivisionError

    @command("vision")
    def stop() -> None:
        """Stop."""
        raise KeyboardInterrupt

    with pytest.raises(PeftError):
        main("art", commands, ["draw", "--debug"])
    with pytest.raises(ZeroDivisionError):  # a fault of the software keeps its traceback
        main("art", [crash], ["crash"])
    assert main("art", [stop], ["stop"]) == 130


def test_words_of_other_programs_are_understood(run) -> None:
    from vision_peft.fit import fit

    for word, meant in (
        ("max_epochs", "epochs"),
        ("learning_rate", "lr"),
        ("output_dir", "out"),
        ("rank", "method.rank"),
    ):
        with pytest.raises(PeftError, match=f'unknown option --{word}, did you mean "--{meant}"'):
            fit.read_line(["--data", "digits", f"--{word}", "1"])


@pytest.mark.parametrize(
    ("word", "likely"), [("loar", "lora"), ("fti", "fit"), ("name", ""), ("nope", ""), ("vtb", "vtab")]
)
def test_hints_are_not_far_fetched(word: str, likely: str) -> None:
    found = nearest(word, ["augment", "compile", "noah", "lora", "fit", "vtab"])
    assert found == (f', did you mean "{likely}"?' if likely else "")


def test_stopping_says_what_is_left(commands: list[Command], capsys: pytest.CaptureFixture) -> None:
    @command("vision")
    def stop(*, how: int = 0) -> None:
        """Stop."""
        if how == 1:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(5)
        raise KeyboardInterrupt(*((130, "the same command goes on") if how else ()))

    assert main("art", [stop], ["stop"]) == 130 and capsys.readouterr().err == "art: stopped.\n"
    assert main("art", [stop], ["stop", "--how", "2"]) == 130
    assert capsys.readouterr().err == "art: stopped; the same command goes on.\n"
    assert main("art", [stop], ["stop", "--how", "1"]) == 143 and capsys.readouterr().err == "art: stopped.\n"
    assert main("art", commands, ["--version"]) == 0 and capsys.readouterr().out.startswith("art 0.")


def test_how_long_a_hub_has_to_answer(
    commands: list[Command], calls: list[dict], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(WAIT, "3")
    assert deadline() == 3.0
    assert main("art", commands, ["draw", "--paper", "x", "--wait", "2.5"]) == 0 and deadline() == 2.5
    assert main("art", commands, ["draw", "--wait=nan", "--paper", "x"]) == 2
    monkeypatch.delenv(WAIT)
    assert deadline() == 10.0


def test_a_locale_without_utf8(tmp_path) -> None:
    code = "import sys; from peft_core.jobs.cli.main import in_utf8; in_utf8(); print(ascii(sys.argv[1]))"
    env = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    said = subprocess.run(
        [sys.executable, "-c", code, "cr\u00e8me"], env=env, capture_output=True, text=True, encoding="utf-8"
    )
    assert said.stdout.strip() == r"'cr\xe8me'", said.stderr


def test_methods_are_listed_by_branch_with_their_papers(capsys: pytest.CaptureFixture) -> None:
    said = 'X: y.\n\n    W = 1. Ben Zaken, Goldberg, "A Title That\n    Goes On", Findings of ACL 2022; after code.'
    assert listing.paper_of(said) == "Ben Zaken, Goldberg, Findings of ACL 2022" and listing.paper_of("None.") == ""
    listing.show("methods", "vision", {})
    heading, *lines = capsys.readouterr().out.splitlines()
    (adapter,) = (line for line in lines if line.split()[:1] == ["adapter"])
    assert heading == "adapters:" and "Houlsby et al., ICML 2019" in adapter
    assert listing.branch_of("lora") == "reparameterized" and listing.branch_of("coop") == "clip_peft"


def test_options_that_few_want_are_in_help_all() -> None:
    for program, module in PROGRAMS.items():
        (fit,) = (each for each in importlib.import_module(module).commands() if each.name == "fit")
        brief, whole = help_of(fit, program), help_of(fit, program, everything=True)
        assert len(brief.splitlines()) <= 120 and "--epochs" in brief and "--trainer.devices" not in brief
        assert "--trainer.devices" in whole and all(f"--{name}" in whole for name in fit.parameters)


PROGRAMS = {
    "vision_peft": "vision_peft.commands", "clip_peft": "clip_peft.commands",
    "diffusion_peft": "diffusion_peft.commands.main",
}  # fmt: skip
