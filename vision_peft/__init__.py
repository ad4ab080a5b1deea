"""Classifiers from frozen timm vision transformers, trained with few parameters."""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vision_peft.backbones import load_backbone
    from vision_peft.fit import fit

__all__ = ["fit", "load_backbone"]


def __getattr__(name: str):
    if name in __all__:  # both need Lightning or timm, which importing a method's file must not
        module = importlib.import_module({"fit": "vision_peft.fit", "load_backbone": "vision_peft.backbones"}[name])
        return getattr(module, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
