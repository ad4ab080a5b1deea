"""Adapt frozen vision models with few parameters: one core for timm, open_clip, transformers and diffusers models."""

import importlib
from typing import TYPE_CHECKING

from peft_core import renamed

if TYPE_CHECKING:
    from peft_core.adaptation import adapt, disabled, merge, remove, set_scale
    from peft_core.adapter_file import load_adapter, save_adapter
    from peft_core.counting import count_parameters
    from peft_core.errors import NotMergeable, PeftError
    from peft_core.jobs.runs.load import load_run
    from peft_core.quantising import dequantise, quantise
    from peft_core.registry import list_methods

__version__ = "0.1.0"
__all__ = [
    "NotMergeable",
    "PeftError",
    "adapt",
    "count_parameters",
    "dequantise",
    "disabled",
    "list_methods",
    "load_adapter",
    "load_run",
    "merge",
    "quantise",
    "remove",
    "save_adapter",
    "set_scale",
]
_WHERE = {
    **dict.fromkeys(("adapt", "disabled", "merge", "remove", "set_scale"), "adaptation"),
    **dict.fromkeys(("load_adapter", "save_adapter"), "adapter_file"),
    **dict.fromkeys(("NotMergeable", "PeftError"), "errors"),
    "count_parameters": "counting",
    "list_methods": "registry",
    "load_run": "jobs.runs.load",
    **dict.fromkeys(("dequantise", "quantise"), "quantising"),
}
"""Where the public names stand: a command line that only lists names must not wait for torch."""

renamed.install()


def __getattr__(name: str):
    if name in _WHERE:
        return getattr(importlib.import_module(f"peft_core.{_WHERE[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
