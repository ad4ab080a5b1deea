"""Layers of a LoRA file: what one file says of one module, to and from the grafts of an adapted model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from diffusion_peft.files.changes import Along, Difference, Generalised, Normed, Scales, Turn
from peft_core.attach import Record, grafts_named
from peft_core.errors import PeftError
from peft_core.grafts.graft import Delta
from peft_core.parts.decomposed import Decomposed
from peft_core.parts.hadamard import Hadamard
from peft_core.parts.kronecker import Kronecker
from peft_core.parts.lowrank import LowRank

KINDS: dict[type[Delta], str] = {
    LowRank: "lora", Decomposed: "dora", Hadamard: "loha", Kronecker: "lokr", Difference: "full", Scales: "ia3",
    Turn: "oft", Generalised: "glora",
}  # fmt: skip
"""What a change is called in files; `dora` is a low-rank change with a magnitude over the outputs."""
RANKLESS = ("full", "ia3", "oft")
"""Kinds without rank and scale."""
MAGNITUDE = "magnitude"


@dataclass(frozen=True)
class Layer:
    """A change of one module's weight.

    Args:
        kind: one of `KINDS`.
        tensors: by the graft's parameter names (A and B, w1_a …), of its shapes; `magnitude` where there is one.
        scale: s, of the kinds that have one.
        normed: over what the magnitude goes; `dora`'s is over the outputs and says nothing here.
        along: over what the scales of `ia3` go.
    """

    kind: str
    tensors: dict[str, Tensor] = field(default_factory=dict)
    scale: float = 1.0
    normed: Along | None = None
    along: Along | None = None

    @property
    def rank(self) -> int:
        """r; of a change without one, 1."""
        found = [self.tensors[name].shape[0] for name in ("A", "w2_b", "w1_b", "a2") if name in self.tensors]
        return found[0] if found else max(self.tensors["w2"].shape[:2]) if "w2" in self.tensors else 1

    @property
    def is_zero(self) -> bool:
        """Whether it changes nothing, whatever the weight is."""
        t = self.tensors
        if self.kind == "dora" or self.normed:
            return False
        if self.kind in ("full", "ia3"):
            return not any(tensor.any() for tensor in t.values())
        if self.kind == "oft":
            return torch.equal(t["P"], t["P"].transpose(1, 2)) and bool((t.get("s", torch.ones(1)) == 1).all())
        if self.kind == "glora":
            return not ((t["a1"].any() and t["a2"].any()) or (t["b1"].any() and t["b2"].any()))
        return any(not tensor.any() for tensor in t.values())

    def settings(self) -> dict[str, Any]:
        """Enough to make the graft again: plain numbers, which a card can hold."""
        t = self.tensors
        found: dict[str, Any] = {"kind": self.kind, "rank": self.rank, "scale": self.scale}
        if self.kind == "loha":
            found["cores"] = "t1" in t
        if self.kind == "lokr":
            found |= {"whole1": "w1" in t, "whole2": "w2" in t, "cores": "t2" in t, "outer": self.outer()}
        if self.kind == "full":
            found["shifts"] = "c" in t
        if self.kind == "oft":
            found |= {"size": t["P"].shape[-1], "rescaled": "s" in t}
        return found | {key: value for key in ("normed", "along") if (value := getattr(self, key)) is not None}

    def outer(self) -> list[int]:
        """[l, m] of a LoKr's w1 (l, m)."""
        t = self.tensors
        return list(t["w1"].shape) if "w1" in t else [t["w1_a"].shape[0], t["w1_b"].shape[1]]


def build(
    weight: Tensor, current: Tensor, kind: str, rank: int, scale: float, normed: Along | None = None, **shape: Any
) -> Delta:
    """The graft that `Layer.settings` describes, with the initial values of its method."""
    if normed is not None:
        return Normed(weight, build(weight, current, kind, rank, scale, **shape), normed)
    if kind == "lora":
        return LowRank(weight, None, rank, scale)
    if kind == "dora":
        return Decomposed(weight, None, rank, scale, current)
    if kind == "loha":
        return Hadamard(weight, None, rank, scale, shape["cores"])
    if kind == "lokr":
        rows, m = shape["outer"]
        split = (rows, weight.shape[0] // rows), (m, weight.shape[1] // m)
        return Kronecker(weight, None, rank, scale, split, shape["whole1"], shape["whole2"], shape["cores"])
    if kind == "full":
        return Difference(weight, shape["shifts"])
    if kind == "ia3":
        return Scales(weight, shape["along"])
    if kind == "oft":
        return Turn(weight, shape["size"], shape["rescaled"])
    if kind == "glora":
        return Generalised(weight, rank, scale)
    raise PeftError(f'a layer of the kind "{kind}" is not known (known: {", ".join(KINDS.values())}).')


@torch.no_grad()
def fill(graft: Delta, layer: Layer) -> None:
    """Puts a layer's tensors into the graft that was built for it."""
    for key, value in layer.tensors.items():
        owner = graft.change if isinstance(graft, Normed) and key != MAGNITUDE else graft
        owner.get_parameter(key).copy_(value)


def layer_of(graft: nn.Module) -> Layer | None:
    """What a file says of this graft; None where files have no word for it."""
    if not isinstance(graft, Delta):
        return None
    inner = graft.change if isinstance(graft, Normed) else graft
    kind = KINDS.get(type(inner))
    if inner.rows is not None:
        return _within_rows(graft, inner)
    if kind is None and isinstance(inner, LowRank):  # of a kin: as the low-rank change that it is
        down, up = (factor.detach().cpu().clone() for factor in inner.factors_at_use())
        return Layer("lora", {"A": down, "B": up}, inner.scale)
    if kind is None:
        return None
    tensors = {key: value.detach().cpu().clone() for key, value in inner.named_parameters()}
    if isinstance(graft, Normed):
        tensors[MAGNITUDE] = graft.magnitude.detach().cpu().clone()
    normed = graft.along if isinstance(graft, Normed) else None
    return Layer(kind, tensors, float(getattr(inner, "scale", 1.0)), normed, getattr(inner, "along", None))


def _within_rows(graft: nn.Module, inner: Delta) -> Layer | None:
    """A low-rank change of some rows of a fused weight, as one of all of them."""
    if inner is not graft or KINDS.get(type(inner), "lora") != "lora" or not isinstance(inner, LowRank):
        return None
    down, up = (factor.detach().cpu().float() for factor in inner.factors_at_use())
    start, stop = inner.rows  # type: ignore[misc]
    return Layer("lora", {"A": down.clone(), "B": torch.cat([up.new_zeros(start, up.shape[1]), up])}, inner.scale)


def side_by_side(layers: Sequence[tuple[Layer, float]]) -> Layer:
    """Low-rank changes of one matrix, each times a number, as one change of all their ranks."""
    ups = [layer.tensors["B"] * (weight * layer.scale) for layer, weight in layers]
    return Layer("lora", {"A": torch.cat([layer.tensors["A"] for layer, _ in layers]), "B": torch.cat(ups, 1)})


def _whole(layer: Layer, weight: Tensor) -> Layer:
    """With rows of zeros where a low-rank change ends above the weight's last row."""
    up = layer.tensors.get("B")
    if layer.kind != "lora" or up is None or len(up) == len(weight):
        return layer
    tensors = layer.tensors | {"B": torch.cat([up, up.new_zeros(len(weight) - len(up), up.shape[1])])}
    return Layer("lora", tensors, layer.scale)


def layers_of(model: nn.Module | None, name: str | None) -> dict[str, Layer]:
    """Module path -> layer, of one adaptation of a model (the only one where `name` is None); {} where it has none.

    Raises:
        PeftError: several adaptations and no name, a scale other than 1, a method without a place in LoRA files.
    """
    adaptation = chosen(model, name)
    if model is None or adaptation is None:
        return {}
    paths = {id(module): path for path, module in model.named_modules()}
    found: dict[str, Layer] = {}
    for module, _, graft in grafts_named(model, adaptation.name):
        path, layer = paths[id(module)], layer_of(graft)
        before = found.get(path)
        if layer is None or adaptation.trained or before is not None and {before.kind, layer.kind} != {"lora"}:
            found = {}
            break
        whole = _whole(layer, module._parameters["weight"])  # type: ignore[arg-type]
        found[path] = whole if before is None else side_by_side([(before, 1.0), (whole, 1.0)])
    if not found:
        raise PeftError(
            f"{adaptation.method.name} has no place in a LoRA file (lora, dora, loha and lokr have): write what it does to "
            "the weights (--as lora, --as diff), or merge(model) and save the whole pipeline."
        )
    return found


def chosen(model: nn.Module | None, name: str | None) -> Any:
    """The adaptation to write, at its full scale; None where the model has none of that name.

    Raises:
        PeftError: several adaptations and no name, a scale other than 1.
    """
    record: Record = Record() if model is None else model.__dict__.get("_peft_record") or Record()
    known = record.adaptations
    if not known or (name is not None and name not in known):
        return None
    if name is None and len(known) > 1:
        raise PeftError(f"this model has several adaptations ({', '.join(known)}): say which one with name=….")
    adaptation = known[next(iter(known)) if name is None else name]
    if adaptation.scale != 1.0:
        raise PeftError(
            f"{adaptation.name} is scaled to {adaptation.scale}: set_scale(model, 1.0) before exporting it."
        )
    return adaptation


def misfit(layer: Layer, weight: Tensor) -> str | None:
    """What of a layer's shapes is not as this weight needs it, in words; None where all fit."""
    shape = tuple(weight.shape)
    if layer.kind == "lokr":
        rows, m = layer.outer()
        if weight.dim() < 2 or shape[0] % rows or shape[1] % m:
            return f"its outer factor ({rows}, {m}) does not divide a weight of {shape}"
    if layer.kind != "full" and weight.dim() < 2:
        return f"it changes a matrix, and here is a weight of {shape}"
    if layer.kind == "oft" and shape[0] % layer.tensors["P"].shape[-1]:
        return f"its blocks of {layer.tensors['P'].shape[-1]} do not divide {shape[0]} outputs"
    with torch.device("meta"):
        like = torch.empty(weight.shape, dtype=torch.float32)
    graft = build(like, like, **layer.settings())
    expected = {key.removeprefix("change."): tuple(p.shape) for key, p in graft.named_parameters()}
    for key, tensor in layer.tensors.items():
        if expected.get(key) != tuple(tensor.shape):
            return f"its {key} is {tuple(tensor.shape)}, and a weight of {shape} needs {expected.get(key)}"
    return f"it lacks {min(expected.keys() - layer.tensors.keys())}" if len(expected) > len(layer.tensors) else None
