"""The models that ship with the programs, found by the program's name."""

from __future__ import annotations

import importlib
from types import ModuleType

REFERENCE = "reference"
"""What a shipped model is called wherever a backbone or base is named."""


def reference_of(program: str) -> ModuleType:
    """`PROGRAM.reference`: its `load`, its FOLDER of weights and card. Imported when it is asked for."""
    return importlib.import_module(f"{program}.reference")
