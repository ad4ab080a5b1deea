"""Anatomies: which module of a model plays which role.

One file a family. Each file has `describe(model, at) -> Anatomy | None`, which answers None for models of other families
and imports its library never: it looks at class names, so that a family costs nothing until a model of it is in hand.
"""

import importlib
import pkgutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from peft_core.errors import PeftError, nearest

GROUPS = {
    "attn": ("q", "k", "v", "proj"),
    "cross_attn": ("cross_q", "cross_k", "cross_v", "cross_proj"),
    "mlp": ("fc1", "fc2"),
}
"""As targets these words mean their linear layers; as places (`SubLayer.kind`) the module."""


@dataclass(frozen=True)
class Place:
    """A weight that plays a role: rows `rows` of parameter `weight` of the module at `module`."""

    role: str
    module: str
    block: int | None = None
    weight: str = "weight"
    bias: str | None = "bias"
    rows: tuple[int, int] | None = None
    called: bool = True
    """False where the owner reads the weight itself and never calls the module (nothing can happen to its input)."""
    tower: str | None = None


@dataclass(frozen=True)
class SubLayer:
    """One residual step x ← x + out(body(norm(x))): `out` is the last module before the sum (layer scale, drop path)."""

    kind: str
    block: int
    norm: str
    body: str
    out: str
    tower: str | None = None
    layer: str | None = None
    """The transformer block it stands in, where the model's blocks hold several (a UNet's do)."""


@dataclass(frozen=True)
class TokenLayout:
    """Blocks that take B N D: extra tokens go behind the first `prefix` ones. `fan_in` = 3 · patch² scales their init;
    `averaged` says that the output is a mean over the tokens behind the prefix."""

    prefix: int
    fan_in: int
    averaged: bool = False


@dataclass
class Anatomy:
    """What a family's file says of one model. Paths are dotted names from the model's root."""

    family: str
    default_targets: tuple[str, ...]
    blocks: dict[str | None, list[str]] = field(default_factory=dict)
    places: list[Place] = field(default_factory=list)
    sublayers: list[SubLayer] = field(default_factory=list)
    heads: list[str] = field(default_factory=list)
    tokens: dict[str | None, TokenLayout] = field(default_factory=dict)
    embed: Callable[[Any, Tensor], Tensor] | None = None
    """(model, input) -> what the first block receives, and (model, what the last block gives) -> output, for `Prefix`."""
    finish: Callable[[Any, Tensor], Tensor] | None = None

    def roles(self) -> set[str]:
        return {place.role for place in self.places}

    def expand(self, targets: Sequence[str]) -> list[str]:
        """Groups become their roles, `qkv` becomes q, k, v where they are separate modules."""
        known = self.roles()
        wanted: list[str] = []
        for target in (targets,) if isinstance(targets, str) else targets:
            names: Iterable[str] = GROUPS.get(target, (target,))
            if target == "qkv" and "qkv" not in known:
                names = ("q", "k", "v")
            for name in names:
                if name not in known:
                    offered = sorted(known | {group for group, roles in GROUPS.items() if known.issuperset(roles)})
                    raise PeftError(
                        f'this {self.family} has no role "{name}"{nearest(name, offered)} (it has: {", ".join(offered)}).'
                    )
                if name not in wanted:
                    wanted.append(name)
        return wanted

    def find(self, targets: Sequence[str] | None) -> Iterator[Place]:
        wanted = self.expand(self.default_targets if targets is None else targets)
        return (place for place in self.places if place.role in wanted)

    def include(self, part: "Anatomy", tower: str) -> None:
        """Take over the anatomy of a part of this model (its paths already start at this model's root)."""
        self.blocks[tower] = next(iter(part.blocks.values()))
        self.places += [_with(place, tower) for place in part.places]
        self.sublayers += [_with(sublayer, tower) for sublayer in part.sublayers]
        for layout in part.tokens.values():
            self.tokens[tower] = layout


def _with(item, tower: str):
    return type(item)(**{**vars(item), "tower": tower})


def join(*names: str) -> str:
    return ".".join(name for name in names if name)


def submodule(module: nn.Module, path: str) -> nn.Module | None:
    """The module at a dotted path, None where there is none (or an Identity of no use as a place for a weight)."""
    for name in path.split("."):
        module = getattr(module, name, None)  # type: ignore[assignment]
        if module is None:
            return None
    return module


def class_names(model: object) -> set[str]:
    """`module.Class` of the model's class and of its bases."""
    return {f"{cls.__module__}.{cls.__qualname__}" for cls in type(model).__mro__}


def families() -> list[str]:
    return sorted(info.name for info in pkgutil.iter_modules(__path__))


def describe(model: nn.Module, at: str = "") -> Anatomy | None:
    """The anatomy of `model`, with paths that start at `at`; None where no family knows it."""
    for family in families():
        anatomy = importlib.import_module(f"{__name__}.{family}").describe(model, at)
        if anatomy is not None:
            return anatomy
    return None


def anatomy_of(model: nn.Module) -> Anatomy:
    anatomy = describe(model)
    if anatomy is None:
        raise PeftError(
            f"no anatomy for {type(model).__module__}.{type(model).__name__}: known families are {', '.join(families())}; "
            "add yours as one file in peft_core/anatomies (CONTRIBUTING.md shows how)."
        )
    return anatomy
