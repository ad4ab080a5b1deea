"""Weighing the adapters of a pipeline's models; new tokens, which have no size, stay."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn

from peft_core import set_scale


def set_scales(models: Iterable[nn.Module], scale: float, prefix: str = "") -> int:
    """`set_scale` on every adaptation whose name starts so; how many there were.

    Raises:
        PeftError: an adaptation that keeps no originals (`full`).
    """
    count = 0
    for model in models:
        record = model.__dict__.get("_peft_record")
        for adaptation in list(record.adaptations.values()) if record else ():
            if adaptation.name.startswith(prefix) and adaptation.method.name != "textual_inversion":
                set_scale(model, scale, adaptation.name)
                count += 1
    return count


def can_be_scaled(models: Iterable[nn.Module]) -> bool:
    """Whether there is an adaptation with a size, and none that keeps no originals (`full`)."""
    records = [model.__dict__["_peft_record"] for model in models if "_peft_record" in model.__dict__]
    methods = [adaptation.method for record in records for adaptation in record.adaptations.values()]
    return all(m.keeps_originals for m in methods) and any(m.name != "textual_inversion" for m in methods)
