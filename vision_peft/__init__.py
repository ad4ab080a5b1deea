"""Classifiers from frozen timm vision transformers, trained with few parameters."""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vision_peft.backbones import load_backbone

__all__ = ["load_backbone"]


def __getattr__(name: str):
    if name == "load_backbone":  # it needs timm, which importing a method's file must not
        return importlib.import_module("vision_peft.backbones").load_backbone
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
