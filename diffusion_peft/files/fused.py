"""Modules of a transformer under the names of its authors' code, where several of diffusers' are rows of one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from diffusion_peft.files.layers import Layer, build, fill
from peft_core.errors import PeftError


@dataclass(frozen=True)
class Spot:
    """Where a module stands in the authors' model: rows `start` to `stop` of the module `name`, whose halves are `swapped` where
    the authors have shift before scale."""

    name: str
    start: int
    stop: int
    swapped: bool = False


def spots_of(
    model: nn.Module, named: Mapping[str, str | tuple[str, ...]], swapped: Sequence[str] = ()
) -> dict[str, Spot]:
    """Spots by diffusers' path, of those modules that the model has.

    Args:
        named: the authors' name -> diffusers' path, or paths, one below the other.
    """
    found = {}
    for name, paths in named.items():
        start = 0
        for path in (paths,) if isinstance(paths, str) else paths:
            try:
                rows = len(model.get_submodule(path).weight)  # type: ignore[arg-type]
            except AttributeError:
                break
            found[path] = Spot(name, start, start + rows, path in swapped)
            start += rows
    return found


def fused(spots: Mapping[str, Spot], layers: Mapping[str, Layer]) -> Layer:
    """Layers of one module's rows as one layer of it: LoRA block by block, differences one below the other.

    Args:
        spots: of all modules that are rows of it, by path.
        layers: of one of them or more, by path.

    Raises:
        PeftError: kinds that rows cannot be put together of.
    """
    parts = [(spots[path], layer) for path, layer in layers.items()]
    first, layer = parts[0]
    if len(spots) == 1 and not first.swapped:
        return layer
    kinds = {layer.kind for _, layer in parts}
    if kinds not in ({"lora"}, {"full"}) or any(layer.normed for _, layer in parts):
        raise PeftError(
            f"{first.name} is one module of several here, of which kohya's files hold no {' and '.join(sorted(kinds))}: write "
            "it as plain LoRA (--as lora)."
        )
    rows = rows_in(spots)
    if kinds == {"full"}:
        wide = layer.tensors["C"].shape[1:]
        tensors = {"C": torch.zeros(rows, *wide)}
        if any("c" in each.tensors for _, each in parts):
            tensors["c"] = torch.zeros(rows)
        for spot, each in parts:
            for key, value in each.tensors.items():
                tensors[key][spot.start : spot.stop] = _turned(value, spot)
        return Layer("full", tensors)
    rank = max(each.rank for _, each in parts)
    blocks = list(spots if len(layers) > 1 else layers)  # a part without a change has a block too: readers count on it
    down, up = torch.zeros(rank * len(blocks), layer.tensors["A"].shape[1]), torch.zeros(rows, rank * len(blocks))
    for path, (spot, each) in zip(layers, parts, strict=True):
        place = blocks.index(path) * rank
        down[place : place + each.rank] = each.tensors["A"]
        up[spot.start : spot.stop, place : place + each.rank] = _turned(each.tensors["B"], spot) * each.scale
    return Layer("lora", {"A": down, "B": up}, 1.0)


def rows_in(spots: Mapping[str, Spot]) -> int:
    """Of the module that they are rows of."""
    return max(spot.stop for spot in spots.values())


def _turned(value: Tensor, spot: Spot) -> Tensor:
    return value.roll(len(value) // 2, 0) if spot.swapped else value


def split(layer: Layer, spots: Sequence[Spot], weights: Sequence[Tensor]) -> list[Layer | None]:
    """A layer of an authors' module as layers of its rows; None where it changes nothing there.

    Args:
        spots, weights: of diffusers' modules, in the order of the rows, all of them.
    """
    if len(spots) == 1 and not spots[0].swapped:
        return [layer]
    if layer.kind == "lora":
        return [_rows_of(layer, spot) for spot in spots]
    whole = torch.cat([_turned(weight.float().cpu(), spot) for spot, weight in zip(spots, weights, strict=True)])
    graft = build(whole, whole, **layer.settings())
    fill(graft, layer)
    with torch.no_grad():
        change = graft(whole) - whole
    parts: list[Layer | None] = []
    for spot in spots:
        own = _turned(change[spot.start : spot.stop], spot)
        tensors = {"C": own} | ({"c": layer.tensors["c"][spot.start : spot.stop]} if "c" in layer.tensors else {})
        parts.append(Layer("full", tensors) if any(tensor.any() for tensor in tensors.values()) else None)
    return parts


def _rows_of(layer: Layer, spot: Spot) -> Layer | None:
    up = _turned(layer.tensors["B"][spot.start : spot.stop], spot)
    alive = up.any(0)
    if not alive.any():
        return None
    return Layer("lora", {"A": layer.tensors["A"][alive].contiguous(), "B": up[:, alive].contiguous()}, layer.scale)
