"""The examples run as they stand, are short, and use the ground floor alone."""

import ast
import runpy
import sys
from pathlib import Path

import pytest

EXAMPLES = sorted((Path(__file__).parent.parent / "examples").glob("*.py"))


@pytest.mark.parametrize("file", EXAMPLES, ids=lambda file: file.stem)
def test_an_example_runs(file: Path, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [file.name, "--steps", "4"])
    runpy.run_path(str(file), run_name="__main__")
    first, last = capsys.readouterr().out.strip().split("\n")
    assert "inserted" in first and "loss" in last and "nan" not in last


@pytest.mark.parametrize("file", EXAMPLES, ids=lambda file: file.stem)
def test_an_example_is_short_and_stands_on_the_ground_floor(file: Path):
    text = file.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 60
    modules = [node.module or "" for node in ast.walk(ast.parse(text)) if isinstance(node, ast.ImportFrom)]
    ours = [module for module in modules if module.partition(".")[0].endswith(("_peft", "peft_core", "peft_data"))]
    assert ours == ["peft_core"]


def test_there_is_one_a_domain():
    assert [file.stem for file in EXAMPLES] == ["clip", "unet", "vit"]
