"""Weighing the adapters of a pipeline's models; new tokens, which have no size, stay."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from torch import nn

from peft_core.adaptation import set_scale
from peft_core.attach import Adaptation


def _sized(models: Iterable[nn.Module], prefix: str = "") -> Iterator[tuple[nn.Module, Adaptation]]:
    """The adaptations whose effect has a size: all but those of words."""
    for model in models:
        record = model.__dict__.get("_peft_record")
        for adaptation in list(record.adaptations.values()) if record else ():
            if adaptation.name.startswith(prefix) and "words" not in adaptation.method.needs:
                yield model, adaptation


def set_scales(models: Iterable[nn.Module], scale: float, prefix: str = "") -> int:
    """`set_scale` on every adaptation whose name starts so; how many there were.

    Raises:
        PeftError: an adaptation that keeps no originals (`full`).
    """
    found = list(_sized(models, prefix))
    for model, adaptation in found:
        set_scale(model, scale, adaptation.name)
    return len(found)


def can_be_scaled(models: Iterable[nn.Module]) -> bool:
    """Whether there is an adaptation with a size, and none that keeps no originals (`full`)."""
    found = [adaptation.method for _, adaptation in _sized(models)]
    return bool(found) and all(method.keeps_originals for method in found)
