"""Adapt frozen vision models with few parameters: one core for timm, open_clip, transformers and diffusers models."""

import importlib
from typing import TYPE_CHECKING

from peft_core.adaptation import adapt, disabled, merge, remove, set_scale
from peft_core.adapter_file import load_adapter, save_adapter
from peft_core.counting import count_parameters
from peft_core.errors import NotMergeable, PeftError
from peft_core.registry import list_methods

if TYPE_CHECKING:
    from peft_core.jobs.runs.load import load_run

__version__ = "0.1.0"
__all__ = [
    "NotMergeable",
    "PeftError",
    "adapt",
    "count_parameters",
    "disabled",
    "list_methods",
    "load_adapter",
    "load_run",
    "merge",
    "remove",
    "save_adapter",
    "set_scale",
]


def __getattr__(name: str):
    if name == "load_run":  # needs Lightning, which importing this package must not
        return importlib.import_module("peft_core.jobs.runs.load").load_run
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
