"""Anatomies: which module of a model plays which role.

One file a family. Each file has `describe(model) -> Anatomy | None`, which answers None for models of other families and
imports its library never: it looks at class names, so that a family costs nothing until a model of it is in hand. A model
of any other class may state its own by a method `peft_anatomy() -> Anatomy`.
"""

import dataclasses
import importlib
import pkgutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

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
class Stream:
    """What runs through blocks: B N D, its first `prefix` tokens (class token, registers) and then the patches, row by row.

    Hierarchies and U shapes have one a stage, joint attention one for the image and one for the text.
    """

    width: int
    prefix: int = 0
    grid: tuple[int, int] | None = None
    """Height and width of the patches; None for words and where the picture's size decides."""
    tokens_refused: str | None = None
    """Why no further tokens may join it."""
    patch: int = 16
    """Pixels a patch along each side."""
    causal: bool = False
    rotary: bool = False
    """Its attention turns the tokens behind the prefix by their positions."""
    pooled: str | None = None
    """The module that receives the mean over the tokens behind the prefix, where the output is made of that."""
    arg: int | str = 0
    output: int = 0
    """Which argument of a block it is, and which of the block's outputs, where it gives several."""
    first_norm: str | None = None
    last_norm: str | None = None
    """The norm that it passes before the first block, and behind the last."""
    channels_first: bool = False  # blocks hand on pictures B D H W, and a step's body reads B H W D

    @property
    def takes_tokens(self) -> bool:
        return self.tokens_refused is None


_MODULES = ("first_norm", "last_norm", "pooled")
"""What of a stream is a module's path."""


@dataclass(frozen=True)
class SubLayer:
    """One residual step x ← x + gate(out(body(norm(x)))), or with `post` x ← x + gate(norm(body(x)))."""

    kind: str
    block: int
    norm: str
    body: str
    into: tuple[str, ...] = ()
    """Modules that read the normed input (with `post` the stream itself)."""
    out: str = ""
    """The body's last module, where it can be joined to; the body itself where empty."""
    gate: str | None = ""
    """The last module before the sum, behind layer scale, gate and drop path, where branches and serial adapters join; `out`
    where empty, None where the sum happens between modules."""
    arg: int | str = 0
    output: int = 0
    """Where the stream is in what `entry` is called with, and the step's result in what `gate` gives."""
    tower: str | None = None
    stream: str | None = None
    layer: str | None = None
    """The transformer block it stands in, where the model's blocks hold several (a UNet's do)."""
    post: bool = False
    enters: str = ""
    """The module that receives the stream, where it is neither the norm nor, with `post`, the body."""
    windowed: bool = False
    """Its readers get the normed stream in windows."""
    attends: bool = False
    """Its body attends by torch's `scaled_dot_product_attention`, where further keys and values can join."""
    cut: tuple[str, ...] | None = None
    """Where zeros can be cut out: of heads, what of the body says their number and their width together; of channels ()."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "out", self.out or self.body)
        object.__setattr__(self, "gate", self.out if self.gate == "" else self.gate)
        object.__setattr__(self, "into", self.into or (self.body,))

    @property
    def entry(self) -> str:
        """The module that receives the stream."""
        return self.enters or (self.body if self.post else self.norm)


_Item = TypeVar("_Item", Place, SubLayer)


@dataclass
class Anatomy:
    """What a family's file says of one model. Paths are dotted names from the model's root."""

    family: str
    default_targets: tuple[str, ...]
    blocks: dict[str | None, list[str]] = field(default_factory=dict)
    """Tower (None where there is but one) -> its blocks."""
    streams: dict[str | None, Stream] = field(default_factory=dict)
    """By tower; further names where a tower has several (`SubLayer.stream`)."""
    places: list[Place] = field(default_factory=list)
    sublayers: list[SubLayer] = field(default_factory=list)
    heads: list[str] = field(default_factory=list)
    tail: tuple[str, ...] = ()
    """What stands behind the last block, the heads apart."""
    rises: dict[str, int] = field(default_factory=dict)
    """Of a U shape: the blocks from the narrowest on, each with the channels of what it gives, B C H W."""
    members: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """Tower -> the modules and parameters outside blocks that are its own."""
    unknown: dict[str, str] = field(default_factory=dict)
    """Towers of which no family knows the class."""
    embed: Callable[[Any, Tensor], Tensor] | None = None
    """(model, input) -> what the first block receives, and (model, what the last block gives) -> output, for `Prefix`."""
    finish: Callable[[Any, Tensor], Tensor] | None = None
    single: bool = False  # each block has one residual step, of the kind mlp: what joins attention and MLP joins that

    def roles(self) -> set[str]:
        return {place.role for place in self.places}

    def expand(self, targets: Sequence[str]) -> list[str]:
        """Groups become their roles, `qkv` becomes q, k, v where they are separate modules."""
        known, wanted = self.roles(), list[str]()
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
        """The places of these roles; where one is a whole matrix, no rows of it besides."""
        wanted = self.expand(self.default_targets if targets is None else targets)
        found = [place for place in self.places if place.role in wanted]
        whole = {(place.module, place.weight) for place in found if place.rows is None}
        return (place for place in found if place.rows is None or (place.module, place.weight) not in whole)

    def tower_of(self, path: str) -> str | None:
        """The tower that a module or parameter outside blocks belongs to; None where it serves the whole model."""
        for tower, names in self.members.items():
            if any(path == name or path.startswith(name + ".") for name in names):
                return tower
        return None

    def include(self, part: "Anatomy", tower: str, at: str, members: Sequence[str]) -> None:
        """Take over the anatomy of the part of this model that stands at `at`, as a tower that owns `members`."""
        part = part.under(at)
        self.blocks[tower] = next(iter(part.blocks.values()))
        inner = {name: tower if name is None else f"{tower}.{name}" for name in part.streams}
        self.streams |= {inner[name]: stream for name, stream in part.streams.items()}
        self.places += [dataclasses.replace(place, tower=tower) for place in part.places]
        self.sublayers += [dataclasses.replace(step, tower=tower, stream=inner[step.stream]) for step in part.sublayers]
        self.members[tower] = tuple(members)

    def under(self, at: str) -> "Anatomy":
        """The same with paths that start `at` a module further up."""
        if not at:
            return self
        moved = {name: [join(at, path) for path in paths] for name, paths in self.blocks.items()}
        streams = {
            name: dataclasses.replace(s, **{key: _under(at, getattr(s, key)) for key in _MODULES})
            for name, s in self.streams.items()
        }
        members = {tower: tuple(join(at, name) for name in names) for tower, names in self.members.items()}
        rises = {join(at, path): channels for path, channels in self.rises.items()}
        return dataclasses.replace(
            self, blocks=moved, streams=streams, places=[_moved(place, at) for place in self.places],
            sublayers=[_moved(step, at) for step in self.sublayers], heads=[join(at, path) for path in self.heads],
            tail=tuple(join(at, path) for path in self.tail), members=members, embed=None, finish=None, rises=rises,
        )  # fmt: skip


def _under(at: str, path: str | None) -> str | None:
    return None if path is None else join(at, path)


def _moved(item: _Item, at: str) -> _Item:
    if isinstance(item, Place):
        return dataclasses.replace(item, module=join(at, item.module))
    paths = {name: _under(at, getattr(item, name)) for name in ("norm", "body", "out", "gate", "layer")}
    paths |= {"enters": join(at, item.enters)} if item.enters else {}
    return dataclasses.replace(item, **paths, into=tuple(join(at, path) for path in item.into))


def join(*names: str) -> str:
    return ".".join(name for name in names if name)


def submodule(module: nn.Module, path: str) -> nn.Module | None:
    """The module at a dotted path, None where there is none (or an Identity of no use as a place for a weight)."""
    for name in path.split("."):
        if (module := getattr(module, name, None)) is None:  # type: ignore[assignment]
            return None
    return module


def fused(module: str, block: int, width: int, **more: Any) -> list[Place]:
    """q, k and v in one matrix, one under another: the whole of it, and the rows of each, `width` of them."""
    rows = {role: (row * width, (row + 1) * width) for row, role in enumerate("qkv")}
    return [Place(role, module, block, rows=rows.get(role), **more) for role in ("qkv", *rows)]


def has_weight(module: nn.Module, path: str) -> bool:
    return getattr(submodule(module, path), "weight", None) is not None


def classifiers(model: Any) -> list[str]:
    """Paths of the modules with parameters that the model's own `get_classifier()` gives, whatever their class."""
    given = model.get_classifier()
    heads = {id(head) for head in (given if isinstance(given, tuple | list) else (given,))}
    return [path for path, m in model.named_modules() if id(m) in heads and any(True for _ in m.parameters())]


def class_names(model: object) -> set[str]:
    """`module.Class` of the model's class and of its bases."""
    return {f"{cls.__module__}.{cls.__qualname__}" for cls in type(model).__mro__}


def families() -> list[str]:
    return sorted(info.name for info in pkgutil.iter_modules(__path__))


def describe(model: nn.Module) -> Anatomy | None:
    """The anatomy of `model`, by its own word or its family's; None where nobody knows it."""
    if callable(own := getattr(model, "peft_anatomy", None)):
        return own()  # type: ignore
    files: list[Any] = [importlib.import_module(f"{__name__}.{family}") for family in families()]
    found = (file.describe(model) for file in sorted(files, key=lambda file: getattr(file, "LAST", False)))
    return next((anatomy for anatomy in found if anatomy is not None), None)


_WRAPPERS = {
    "torch.distributed.fsdp.fully_sharded_data_parallel.FullyShardedDataParallel": ("wrapped", "module"),
    "timm.models._features.FeatureGetterNet": ("wrapped to give features", "model"),
    "timm.models._features.FeatureHookNet": ("taken apart to give features", ""),
    "timm.models._features.FeatureListNet": ("taken apart to give features", ""),
}


def refuse_wrapped(model: nn.Module) -> None:
    """Raises PeftError for a sharded or feature-giving wrapper, naming the module inside."""
    for name in class_names(model) & _WRAPPERS.keys():
        what, attribute = _WRAPPERS[name]
        remedy = f"give the module inside, model.{attribute}" if attribute else "give the model that it was made from"
        raise PeftError(f"this {type(model).__name__} is a model {what}: {remedy}.")


def anatomy_of(model: nn.Module) -> Anatomy:
    """The anatomy of a model.

    Raises:
        PeftError: the model is wrapped, or of no known family.
    """
    refuse_wrapped(model)
    if (anatomy := describe(model)) is None:
        raise PeftError(
            f"no anatomy for {type(model).__module__}.{type(model).__name__}: known families are {', '.join(families())}; "
            "give yours a method peft_anatomy(), or add a file in peft_core/anatomies (CONTRIBUTING.md shows how)."
        )
    return anatomy
