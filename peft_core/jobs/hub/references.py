"""The models that ship with the programs, found by the program's name."""

from __future__ import annotations

import importlib
from types import ModuleType

from peft_core.errors import PeftError

REFERENCE = "reference"
"""What a shipped model is called wherever a backbone or base is named."""


def check_architecture(name: str) -> None:
    """Raises PeftError where the shipped model's name stands for an architecture, which other weights are to go into."""
    if name == REFERENCE:
        raise PeftError(
            f"the {REFERENCE} model has its weights and takes no others: give {REFERENCE} alone, or another architecture."
        )


def only_drawn(backbone: str, data: str = "") -> str:
    """ "" or what to know of the shipped model before it meets pictures of another kind than its own."""
    if backbone != REFERENCE or data == "digits" or data.startswith("world/"):
        return ""
    return "; it knows drawn pictures only, photographs want a real one (docs/your-pictures.md)"


def reference_of(program: str) -> ModuleType:
    """`PROGRAM.reference`: its `load`, its FOLDER of weights and card. Imported when it is asked for."""
    return importlib.import_module(f"{program}.reference")
