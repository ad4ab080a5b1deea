"""What of a model decides its output beside its weights: activations, heads, the eps of norms, pooling.

Two models with the same weights are two models where these differ: keys of kept features and fingerprints of backbones hold
them, too.
"""

import functools
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torch import nn

_TRAITS = (
    "num_heads",
    "head_dim",
    "eps",
    "pool_type",
    "text_pool_type",
    "global_pool",
    "final_ln_after_pool",
    "approximate",
)
_OF_NO_EFFECT = ("Identity", "Dropout", "DropPath", "PatchDropout", "StochasticDepth", "Flatten")
_PLAIN = (bool, int, float, str, tuple, type(None))


def configuration_of(model: nn.Module) -> dict[str, str]:
    """Trait → what the stock model's modules say of it, `{"num_heads": "12 × 24", "layers without weights": "QuickGELU × 24"}`.

    Few traits, which stay from one version of a library to the next: for a fingerprint that is kept for years.
    """
    found: dict[str, Counter[str]] = {}
    for _, module in _stock(model):
        for trait in _TRAITS:
            if trait in module.__dict__ and isinstance(value := module.__dict__[trait], _PLAIN):
                found.setdefault(trait, Counter())[str(value)] += 1
        bare = not module._modules and not module._parameters and not module._buffers
        if bare and type(module).__name__ not in _OF_NO_EFFECT:
            found.setdefault("layers without weights", Counter())[type(module).__name__] += 1
    return {
        trait: ", ".join(f"{value} × {count}" for value, count in sorted(counts.items()))
        for trait, counts in sorted(found.items())
    }


def differs(there: Mapping[str, str], here: Mapping[str, str]) -> str | None:
    """In which trait two configurations differ, of those that both hold; None where in none."""
    for trait in sorted(there.keys() & here.keys()):
        if there[trait] != here[trait]:
            return f"{trait}: {there[trait]} there, {here[trait]} here"
    return None


def settings_of(model: nn.Module) -> str:
    """Class, plain settings and functions of every module, line by line: for the key of what is kept in a cache."""
    return "\n".join(
        f"{path} {type(module).__qualname__} {settings}"
        for path, module in model.named_modules()
        for settings in [sorted((k, _named(v)) for k, v in module.__dict__.items() if _counts(k, v))]
    )


def _counts(name: str, value: Any) -> bool:
    return name != "training" and (isinstance(value, _PLAIN) or callable(value)) and not isinstance(value, nn.Module)


def _named(value: Any) -> str:
    """A value by what it is; a function by its name, not its address."""
    if isinstance(value, functools.partial):
        return f"{_named(value.func)} {value.args} {value.keywords}"
    if isinstance(value, Callable) and not isinstance(value, _PLAIN):
        return getattr(value, "__qualname__", type(value).__qualname__)
    return repr(value)


def _stock(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    return ((path, module) for path, module in model.named_modules() if "peft" not in path.split("."))
