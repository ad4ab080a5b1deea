"""Layers of a LoRA file: what one file says of one module, to and from the grafts of an adapted model."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from peft_core.attach import Record, grafts_named
from peft_core.errors import PeftError
from peft_core.grafts.graft import Delta
from peft_core.parts.decomposed import Decomposed
from peft_core.parts.hadamard import Hadamard
from peft_core.parts.kronecker import Kronecker
from peft_core.parts.lowrank import LowRank

KINDS = {LowRank: "lora", Decomposed: "dora", Hadamard: "loha", Kronecker: "lokr"}


@dataclass(frozen=True)
class Layer:
    """A change of one module's weight. `tensors` have the graft's parameter names (A and B, w1_a …) and shapes."""

    kind: str
    tensors: dict[str, Tensor]
    scale: float

    @property
    def rank(self) -> int:
        shapes = [self.tensors[name].shape[0] for name in ("A", "w2_b", "w1_b") if name in self.tensors]
        return shapes[0] if shapes else max(self.tensors["w2"].shape[:2])

    @property
    def is_zero(self) -> bool:
        """Whether it changes nothing, whatever the weight is: a factor of its product is all zero."""
        return self.kind != "dora" and any(not tensor.any() for tensor in self.tensors.values())

    def settings(self) -> dict[str, Any]:
        """Enough to make the graft again: plain numbers, which a card can hold."""
        found: dict[str, Any] = {"kind": self.kind, "rank": self.rank, "scale": self.scale}
        if self.kind == "loha":
            found["cores"] = "t1" in self.tensors
        if self.kind == "lokr":
            found |= {"whole1": "w1" in self.tensors, "whole2": "w2" in self.tensors, "cores": "t2" in self.tensors}
            found["outer"] = self.outer()
        return found

    def outer(self) -> list[int]:
        """[l, m] of a LoKr's w1 (l, m)."""
        t = self.tensors
        return list(t["w1"].shape) if "w1" in t else [t["w1_a"].shape[0], t["w1_b"].shape[1]]


def build(weight: Tensor, current: Tensor, kind: str, rank: int, scale: float, **shape: Any) -> Delta:
    """The graft that `Layer.settings` describes, with the initial values of its method."""
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
    raise PeftError(f'a layer of the kind "{kind}" is not known (known: {", ".join(KINDS.values())}).')


def layers_of(model: nn.Module | None, name: str | None) -> dict[str, Layer]:
    """Module path -> layer, of one adaptation of a model (the only one where `name` is None); {} where it has none.

    Raises:
        PeftError: several adaptations and no name, a scale other than 1, a method without a place in LoRA files.
    """
    record: Record = Record() if model is None else model.__dict__.get("_peft_record") or Record()
    known = record.adaptations
    if model is None or not known or (name is not None and name not in known):
        return {}
    if name is None and len(known) > 1:
        raise PeftError(f"this model has several adaptations ({', '.join(known)}): say which one with name=….")
    adaptation = known[next(iter(known)) if name is None else name]
    if adaptation.scale != 1.0:
        raise PeftError(
            f"{adaptation.name} is scaled to {adaptation.scale}: set_scale(model, 1.0) before exporting it."
        )
    paths = {id(module): path for path, module in model.named_modules()}
    found: dict[str, Layer] = {}
    for module, _, graft in grafts_named(model, adaptation.name):
        path, kind = paths[id(module)], KINDS.get(type(graft))  # type: ignore[arg-type]
        if kind is None or adaptation.trained or graft.rows is not None or path in found:
            found = {}
            break
        tensors = {key: value.detach().cpu().clone() for key, value in graft.named_parameters()}
        found[path] = Layer(kind, tensors, float(graft.scale))  # type: ignore[arg-type]
    if not found:
        raise PeftError(
            f"{adaptation.method.name} has no place in a LoRA file (lora, dora, loha and lokr have): "
            "merge(model) and save the whole pipeline, or save_adapter(model, folder)."
        )
    return found


def check_fits(layer: Layer, weight: Tensor) -> bool:
    """Whether the layer's shapes are those that this weight needs."""
    with torch.device("meta"):
        like = torch.empty(weight.shape, dtype=torch.float32)
    if layer.kind == "lokr":
        rows, m = layer.outer()
        if weight.shape[0] % rows or weight.shape[1] % m:
            return False
    expected = {key: p.shape for key, p in build(like, like, **layer.settings()).named_parameters()}
    return expected == {key: t.shape for key, t in layer.tensors.items()}
