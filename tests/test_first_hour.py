"""A newcomer's first hour: the commands of docs/first-hour.md run one after another, and those of all pages are read."""

import importlib
import re
import runpy
import shlex
import sys
import warnings
from pathlib import Path

import pytest
from peft_data import world_open

import vision_peft.use
from peft_core.jobs.runs import onnx_file
from tests.readme import ROOT, module_of

PROGRAMS = ("vision_peft", "clip_peft", "diffusion_peft")


def commands(page: Path) -> list[str]:
    """The lines of a page's blocks of shell, comments left out, those that go on in the next line joined."""
    found = re.findall(r"```bash\n(.*?)```", page.read_text(encoding="utf-8"), re.S)
    lines = (
        shlex.join(shlex.split(line, comments=True))
        for block in found
        for line in block.replace("\\\n", " ").splitlines()
    )
    return [line for line in lines if line]


HOUR = commands(ROOT / "docs/first-hour.md")
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
OF_PAGES = sorted({line for page in PAGES for line in commands(page) if line.startswith(PROGRAMS) and "…" not in line})
SHORT = {
    "vision_peft fit": "--trainer.max_steps 2", "vision_peft auto": "--epochs 1 --recipes world",
    "clip_peft fit": "--cache_views 1 --epochs 1",
    "diffusion_peft fit": "--epochs 1 --sample_count 1 --sample_steps 2", "diffusion_peft sample": "--steps 2 --count 1",
}  # fmt: skip
"""What trains or draws gets besides, so that a test has time for it."""


def run(line: str) -> int:
    program, *words = shlex.split(line)
    if program == "python":
        before, sys.argv = sys.argv, words[1:]
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", RuntimeWarning)  # it is imported already
                runpy.run_module(words[1], run_name="__main__")
        finally:
            sys.argv = before
        return 0
    return importlib.import_module(module_of(program)).main(words)


def test_there_are_forty() -> None:
    assert len(HOUR) >= 40 and len(OF_PAGES) >= 70
    assert {line.split()[0] for line in HOUR} == {*PROGRAMS, "python"}


@pytest.mark.parametrize("line", OF_PAGES)
def test_the_commands_of_all_pages_are_read(line: str) -> None:
    program, name, *words = shlex.split(line)
    if name.startswith("-") or "--help" in words or "--config" in words or ".yaml" in line:
        return  # what another run writes is not there
    (command,) = (each for each in importlib.import_module(module_of(program)).commands() if each.name == name)
    command.of_line(words).read_line(words)


@pytest.mark.slow
@pytest.mark.parametrize("whole", [False, True])
def test_the_first_hour_runs(whole: bool, tmp_path: Path, monkeypatch, capsys) -> None:
    """As printed where it is `whole`; else what trains is cut short, and what other tests write is not written."""
    monkeypatch.chdir(tmp_path)
    if not whole:
        monkeypatch.setenv("PEFT_DATA_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(world_open, "SPLITS", {"train": 16, "val": 2, "test": 2})
        for module in (vision_peft.use, onnx_file):
            monkeypatch.setattr(module, "write_onnx", lambda model, run, target, *more: target.touch())
    before: list[str] = []
    for line in HOUR:
        kind = " ".join(line.split()[:2])
        cut = SHORT.get(kind, "") if not whole and "--help" not in line else ""
        if not whole and line.startswith("python -m peft_data.digits"):
            line = line.replace("60", "10")
        capsys.readouterr()
        assert run(f"{line} {cut}") == 0, f"{line}: {capsys.readouterr().err}"
        said = capsys.readouterr()
        assert "Traceback" not in said.err, line
        if out := re.search(r"--out (\S+)", line):
            assert (tmp_path / out[1]).exists(), line
        assert ("is finished already" in said.out) == (line in before and " fit " in line), line
        before.append(line)
