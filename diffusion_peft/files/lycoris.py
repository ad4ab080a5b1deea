"""One module's entries in a kohya or LyCORIS file, to and from a `Layer`; the key's part behind the module's name says what.

Scales as LyCORIS has them: alpha / rank, where an alpha of 0 or none at all means rank; 1 for a LoKr of two whole factors and
for the kinds without a rank.
"""

from __future__ import annotations

import torch
from torch import Tensor

from diffusion_peft.files.changes import Along
from diffusion_peft.files.layers import MAGNITUDE, Layer

_PLAIN = {
    "loha": {f"hada_{name}": name for name in ("w1_a", "w1_b", "w2_a", "w2_b", "t1", "t2")},
    "lokr": {f"lokr_{name}": name for name in ("w1", "w1_a", "w1_b", "w2", "w2_a", "w2_b", "t2")},
    "oft": {"oft_blocks": "P", "rescale": "s"},
    "glora": {f"{name}.weight": name for name in ("a1", "a2", "b1", "b2")},
    "ia3": {"weight": "w", "on_input": "on_input"},
    "full": {"diff": "C", "diff_b": "c"},
}
_NORM = {"w_norm": "C", "b_norm": "c"}
_LORA = {"lora_down.weight", "lora_up.weight", "lora_mid.weight"}
_LAST = {"lora": "B", "dora": "B", "loha": "w1_a", "lokr": "w1"}
SUFFIXES = frozenset(
    _LORA | _NORM.keys() | {key for names in _PLAIN.values() for key in names} | {"alpha", "dora_scale"}
)


def read_layer(found: dict[str, Tensor], weight: Tensor) -> Layer | None:
    """The change that a module's entries say; None where they are no complete set of a known kind.

    Args:
        found: tensors by what follows the module's name (`lora_up.weight`, `alpha`, …).
        weight: the module's, whose shape says what a magnitude without dimensions goes over.
    """
    found = dict(found)
    alpha, scale = found.pop("alpha", None), found.pop("dora_scale", None)
    layer = _lora(found) if found.keys() & _LORA else _of_kind(found, weight)
    if layer is None:
        return None
    if layer.kind == "oft":
        layer = _within(layer, alpha, weight)
    elif layer.kind in ("lora", "loha", "lokr", "glora") and not {"w1", "w2"} <= layer.tensors.keys():
        value = 0.0 if alpha is None else float(alpha)
        layer = Layer(layer.kind, layer.tensors, value / layer.rank if value else 1.0)
    return layer if scale is None else _normed(layer, scale, weight)


def _lora(found: dict[str, Tensor]) -> Layer | None:
    if found.keys() - _LORA or not {"lora_down.weight", "lora_up.weight"} <= found.keys():
        return None
    down, up = found["lora_down.weight"], found["lora_up.weight"].flatten(1)
    if "lora_mid.weight" in found:  # Tucker form: a 1 × 1 convolution, then the kernel, is one convolution
        down = torch.einsum("ijhw,jc->ichw", found["lora_mid.weight"], down.flatten(1))
    return Layer("lora", {"A": down.flatten(1), "B": up})


def _of_kind(found: dict[str, Tensor], weight: Tensor) -> Layer | None:
    for kind, names in (*_PLAIN.items(), ("full", _NORM)):
        if not found or not found.keys() <= names.keys():
            continue
        t = {names[key]: value for key, value in found.items()}
        if kind == "loha" and {"w1_a", "w1_b", "w2_a", "w2_b"} <= t.keys():
            return Layer(kind, t)
        if kind == "lokr" and all(w in t or {f"{w}_a", f"{w}_b"} <= t.keys() for w in ("w1", "w2")):
            return Layer(kind, t | ({"w2_b": t["w2_b"].flatten(1)} if "w2_b" in t and "t2" not in t else {}))
        if kind == "oft" and "P" in t and t["P"].dim() == 3:
            return Layer(kind, t | ({"s": t["s"].flatten()} if "s" in t else {}))
        if kind == "glora" and len(t) == 4:
            return Layer(kind, _glora({name: value.flatten(1) for name, value in t.items()}, weight))
        if kind == "ia3" and len(t) == 2:
            along: Along = "inputs" if int(t["on_input"]) else "outputs"
            return Layer(kind, {"w": t["w"].flatten()}, along=along)
        if kind == "full":
            zero = {} if "C" in t else {"C": torch.zeros(weight.shape)}
            return Layer(kind, t | zero)
    return None


def _glora(t: dict[str, Tensor], weight: Tensor) -> dict[str, Tensor]:
    """LyCORIS' first files have the factors of each product under each other's names."""
    rank = t["a2"].shape[0]
    if t["a1"].shape == (weight.shape[1], rank) and t["b1"].shape == (weight.shape[0], rank):
        return t
    return {"a1": t["a2"], "a2": t["a1"], "b1": t["b2"], "b2": t["b1"]}


def _within(layer: Layer, alpha: Tensor | None, weight: Tensor) -> Layer:
    """The constraint of OFT: ‖Q‖ is at most alpha · outputs, where there is an alpha."""
    limit = 0.0 if alpha is None else float(alpha) * weight.shape[0]
    q = layer.tensors["P"] - layer.tensors["P"].transpose(1, 2)
    norm = float(q.norm())
    if limit <= 0 or norm <= limit:
        return layer
    return Layer("oft", layer.tensors | {"P": layer.tensors["P"] * (limit / norm)})


def _normed(layer: Layer, scale: Tensor, weight: Tensor) -> Layer:
    """With a magnitude (out, 1, …) over the outputs or (1, in, …) over the inputs; of one dimension, what its length fits."""
    if scale.dim() > 1:
        along: Along = "inputs" if scale.shape[0] == 1 and scale.shape[1] > 1 else "outputs"
    else:
        along = "inputs" if len(scale) != weight.shape[0] and len(scale) == weight.shape[1] else "outputs"
    tensors = layer.tensors | {MAGNITUDE: scale.flatten()}
    if layer.kind == "lora" and along == "outputs":
        return Layer("dora", tensors, layer.scale)
    return Layer(layer.kind, tensors, layer.scale, along, layer.along)


# ---- writing -------------------------------------------------------------------------------------------------------


def write_layer(layer: Layer, weight: Tensor, alpha: float) -> dict[str, Tensor]:
    """A module's entries, with this alpha where the kind has one: what a layer's scale differs by goes into its last factor."""
    t = dict(layer.tensors)
    magnitude = t.pop(MAGNITUDE, None)
    found: dict[str, Tensor] = {}
    if magnitude is not None:
        rest = [1] * (weight.dim() - 2)
        found["dora_scale"] = magnitude.view(1, -1, *rest) if layer.normed == "inputs" else magnitude.view(-1, 1, *rest)
    if layer.kind in ("full", "ia3", "oft"):
        return found | _whole(layer, t, weight)
    whole = "w1" in t and "w2" in t  # LyCORIS takes a scale of 1 there, whatever alpha says
    factor = layer.scale if whole else layer.scale * layer.rank / alpha
    found["alpha"] = torch.tensor(float(layer.rank) if whole else alpha)
    if layer.kind == "glora":
        t |= {"a1": t["a1"] * factor, "b1": t["b1"] * factor}
        for name, value in t.items():
            rest = weight.shape[1:] if name == "b2" else (value.shape[1], *[1] * (weight.dim() - 2))
            found[f"{name}.weight"] = value.reshape(value.shape[0], *rest)
        return found
    last = _LAST[layer.kind] if _LAST[layer.kind] in t else "w1_a"
    t[last] = t[last] * factor
    if layer.kind in ("lora", "dora"):
        found["lora_down.weight"] = t["A"].view(-1, *weight.shape[1:])
        found["lora_up.weight"] = t["B"].view(*t["B"].shape, *[1] * (weight.dim() - 2))
        return found
    if layer.kind == "lokr" and "t2" in t:  # readers disagree on Tucker cores
        t["w2_b"] = torch.einsum("ijhw,jn->inhw", t.pop("t2"), t["w2_b"]).flatten(1)
        t["w2_a"] = t["w2_a"].t()
    return found | {key: t[name] for key, name in _PLAIN[layer.kind].items() if name in t}


def _whole(layer: Layer, t: dict[str, Tensor], weight: Tensor) -> dict[str, Tensor]:
    """The kinds without a rank; a norm's difference has names of its own."""
    names = _NORM if weight.dim() == 1 else _PLAIN[layer.kind]
    if layer.kind == "ia3":
        shaped = [1] * (weight.dim() - 2)
        w = t["w"].view(1, -1, *shaped) if shaped else t["w"]
        return {"weight": w, "on_input": torch.tensor(int(layer.along == "inputs"))}
    if layer.kind == "oft":
        more = {"rescale": t["s"].view(-1, *[1] * (weight.dim() - 1))} if "s" in t else {}
        return {"oft_blocks": t["P"], "alpha": torch.tensor(0.0)} | more
    return {key: t[name] for key, name in names.items() if name in t}
