"""Adapting CLIP models of open_clip with few parameters: classes named by words, images → logits."""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from clip_peft.open_vocabulary import OpenVocabulary

__all__ = ["OpenVocabulary"]


def __getattr__(name: str):
    if name == "OpenVocabulary":  # listing methods imports this package and should not pay for it
        return importlib.import_module("clip_peft.open_vocabulary").OpenVocabulary
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
