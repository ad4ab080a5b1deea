"""The blocks of the README and of the pages for a first day."""

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parent.parent
PAGES = ("README.md", "docs/your-pictures.md", "docs/tour.md")
"""Whose commands run one after another, from the first page to the last."""
TEXT = "\n".join((ROOT / page).read_text(encoding="utf-8") for page in PAGES)


def blocks(language: str, word: str = "") -> list[str]:
    """Those in a language that hold a word."""
    return [block for block in re.findall(rf"```{language}\n(.*?)```", TEXT, re.S) if word in block]


def module_of(program: str) -> str:
    """The module whose `main` a console script runs."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return project["scripts"][program].removesuffix(":main")
