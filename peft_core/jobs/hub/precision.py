"""The frozen part in few bits: one option of all programs' `fit`, kept in a run's config for whoever opens the run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from torch import nn

from peft_core.method import Method
from peft_core.quantising import quantise
from peft_core.registry import find_method

Quantize = Literal["none", "nf4", "int8", "int4", "int2"]


def in_few_bits(model: nn.Module, config: Mapping[str, Any], *methods: Method | type[Method]) -> nn.Module:
    """The model's linears quantised as a run's settings say; runs from before the option are not.

    Args:
        methods: what adapts the model next; for one that starts from what is lost the weights stay at hand until then.
    """
    kind = config.get("quantize") or "none"
    return model if kind == "none" else quantise(model, kind, keep=any("quantised" in m.needs for m in methods))


def methods_of(card: Mapping[str, Any]) -> list[type[Method]]:
    """The methods that an adapter's card names."""
    return [find_method(entry["method"]) for entry in card["adaptations"]]
