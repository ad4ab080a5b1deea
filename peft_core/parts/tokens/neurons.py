"""Which neurons of a frozen model's MLPs are active: what their first layers give, by its sign."""

from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from peft_core.anatomies import anatomy_of
from peft_core.errors import PeftError
from peft_core.method import Method
from peft_core.passes.evaluating import evaluating
from peft_core.places import Where


def first_layers(model: nn.Module, method: Method, last: int) -> list[nn.Module]:
    """The first layers of the MLPs in a tower's last blocks, `last` of them, where they are called."""
    where = Where(model, anatomy_of(model), method)
    places = [place for place in where.anatomy.find(("fc1",)) if place.called and place.block is not None]
    return [
        model.get_submodule(place.module)
        for tower, blocks in where.towers()
        for place in places
        if place.tower == tower and place.block >= len(blocks) - last  # type: ignore[operator]
    ]


@torch.no_grad()
def active(model: nn.Module, layers: Iterable[nn.Module], losses: Iterable[Any]) -> Tensor:
    """1 for each neuron above 0 and 0 for each other, at the first token of each picture of the first batch of the losses, in
    eval mode.

    Raises:
        PeftError: no forward is run when a loss is asked for.
    """
    found: list[Tensor] = []
    hooks = [layer.register_forward_hook(lambda _, __, y: found.append(y[:, 0])) for layer in layers]
    try:
        with evaluating(model):
            next(iter(losses), None)
    finally:
        for hook in hooks:
            hook.remove()
    if not found:
        raise PeftError(
            "neurons are seen when a loss is asked for: give losses that run the model then, not a list of them."
        )
    return torch.cat([(y > 0).flatten() for y in found]).float()


def overlap(one: Tensor, other: Tensor) -> float:
    """The cosine of two such vectors."""
    return F.cosine_similarity(one, other, dim=0).item()
