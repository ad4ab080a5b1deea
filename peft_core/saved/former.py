"""Adapter files of older versions, as the methods of today take them."""

import re
from collections.abc import Iterable

from torch import Tensor, nn

from peft_core.anatomies import SubLayer, anatomy_of
from peft_core.attach import Record


def tensors_of(tensors: dict[str, Tensor], expected: Iterable[str], model: nn.Module) -> dict[str, Tensor]:
    """A file's tensors under today's names.

    Serial adapters once stood at the output of attention or MLP, before layer scale γ: y + Up(act(Down y)) there is
    γy + γUp(act((Down / γ) γy)) behind it, so Down and Up are rescaled and the outputs stay.

    Args:
        expected: names that the model's adaptations have; others are looked up under their former ones.
    """
    wanted = set(expected) - tensors.keys()
    if not wanted:
        return tensors
    tensors = dict(tensors)
    record: Record = model.__dict__.get("_peft_record") or Record()
    for adaptation in record.adaptations.values():
        for former, now in adaptation.method.renamed.items():
            former, now = former.format(name=adaptation.name), now.format(name=adaptation.name)
            for key in [key for key in tensors if former in key and key.replace(former, now) in wanted]:
                tensors[key.replace(former, now)] = tensors.pop(key)
    for sublayer in anatomy_of(model).sublayers:
        if sublayer.gate is None:
            continue
        former, now = f"{sublayer.out}.peft.", f"{sublayer.gate}.peft."
        for key in [key for key in tensors if key.startswith(former)]:
            moved = now + key.removeprefix(former)
            if moved in wanted:
                tensors[moved] = _behind(tensors.pop(key), moved, _layer_scale(model, sublayer))
    return tensors


def _layer_scale(model: nn.Module, sublayer: SubLayer) -> Tensor | None:
    """γ of a residual step, under the names that families have for it."""
    block, number = model.get_submodule(str(sublayer.gate).rpartition(".")[0]), 1 if sublayer.kind == "attn" else 2
    named = dict(block.named_parameters())
    return next(
        (named[n].detach() for n in (f"ls{number}.gamma", f"ls_{number}.gamma", f"gamma_{number}") if n in named), None
    )


def _behind(tensor: Tensor, key: str, gamma: Tensor | None) -> Tensor:
    if gamma is None or not re.search(r"(down\.weight|up\.(weight|bias))$", key):
        return tensor
    gamma = gamma.to(tensor)
    if key.endswith("down.weight"):
        return tensor / gamma
    return gamma[:, None] * tensor if tensor.dim() == 2 else gamma * tensor
