"""The README's blocks."""

import re
import tomllib
from pathlib import Path

README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")


def blocks(language: str, word: str = "") -> list[str]:
    """Those in a language that hold a word."""
    return [block for block in re.findall(rf"```{language}\n(.*?)```", README, re.S) if word in block]


def module_of(program: str) -> str:
    """The module whose `main` a console script runs."""
    project = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return project["scripts"][program].removesuffix(":main")
