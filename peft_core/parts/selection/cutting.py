"""Heads and channels that are zero, cut out of a plain model: what structured pruning leaves when it is merged."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from peft_core.anatomies import Place, anatomy_of
from peft_core.attach import unwrapped
from peft_core.errors import PeftError


def cut_out(model: nn.Module) -> dict[str, tuple[int, int]]:
    """Takes out the heads whose values are zero, and the channels of MLPs that are, where the family says that it can be done:
    the outputs stay the same. A layer keeps one at least.

    Returns: path of each attention and MLP that was looked at -> how many heads or channels it has now, and had.

    Raises:
        PeftError: the model is adapted.
    """
    if "_peft_record" in unwrapped(model).__dict__:
        raise PeftError("an adapted model cannot be cut: merge(model) first.")
    anatomy, found = anatomy_of(model), dict[str, tuple[int, int]]()
    for step in anatomy.sublayers:
        if step.cut is None:
            continue
        body: Any = model.get_submodule(step.body)
        here = [place for place in anatomy.places if place.module.startswith(f"{step.body}.")]
        gives = [place for place in here if place.role in ("q", "k", "v", "fc1")]
        taken: Any = next(model.get_submodule(place.module) for place in here if place.role in ("proj", "fc2"))
        groups = getattr(body, step.cut[0]) if step.cut else taken.in_features
        size = taken.in_features // groups
        dead = torch.stack([_zero(model, p).view(groups, size).all(1) for p in gives if p.role in ("v", "fc1")]).all(0)
        if dead.all():
            dead[0] = False
        kept = (~dead).nonzero().flatten()
        found[step.body] = len(kept), groups
        if len(kept) == groups:
            continue
        rows = (kept[:, None] * size + torch.arange(size, device=kept.device)).flatten()
        for path in dict.fromkeys(place.module for place in gives):
            parts = [p.rows[0] if p.rows else 0 for p in gives if p.module == path]
            _keep(model.get_submodule(path), torch.cat([start + rows for start in parts]), 0)
        _keep(taken, rows, 1)
        for name, value in zip(step.cut, (len(kept), len(rows)), strict=False):
            setattr(body, name, value)
    return found


def _zero(model: nn.Module, place: Place) -> Tensor:
    """Which of the place's outputs are zero whatever it reads."""
    module, rows = model.get_submodule(place.module), slice(*(place.rows or (None,)))
    weight, bias = module._parameters[place.weight], module._parameters.get(place.bias or "")
    assert weight is not None
    found = (weight[rows] == 0).all(1)
    return found if bias is None else found & (bias[rows] == 0)


def _keep(module: Any, index: Tensor, dim: int) -> None:
    """These rows (0) or columns (1) of a linear alone."""
    with torch.no_grad():
        required = module.weight.requires_grad
        module.weight = nn.Parameter(module.weight.index_select(dim, index), required)
        if dim == 0 and module.bias is not None:
            module.bias = nn.Parameter(module.bias[index], module.bias.requires_grad)
    module.out_features, module.in_features = module.weight.shape


def sizes(found: dict[str, tuple[int, int]]) -> Sequence[tuple[int, ...]]:
    """Block by block how many heads and channels there are now, of `cut_out`'s result."""
    each = [now for now, _ in found.values()]
    return list(zip(each[::2], each[1::2], strict=True))
