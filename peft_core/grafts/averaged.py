"""A model whose changes are drawn anew for each forward: outside of training its output is the mean of several forwards."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree

from peft_core.grafts.calls import closing, opening, state
from peft_core.grafts.graft import Graft


class Averaged(Graft):
    """On the model itself: runs its forward `count` times; changes find the number of theirs by `instance(adaptation)`."""

    def __init__(self, count: int):
        super().__init__()
        self.count, self.key = count, ""

    def named(self, adaptation: str, path: str, slot: str) -> None:
        self.key = f"{adaptation}/instance"

    def leaving(self, module: nn.Module, args: tuple, kwargs: dict[str, Any], output: Any) -> Any:
        if self.training:
            return output
        outputs = [output]
        for number in range(1, self.count):
            opening(module, args)
            try:
                state()[self.key] = number
                outputs.append(module.forward(*args, **kwargs))
            finally:
                closing(module, args, None)
        return _pytree.tree_map(_mean, *outputs)


def instance(adaptation: str) -> int:
    """Which of the forwards of an averaged output this one is."""
    return state().get(f"{adaptation}/instance", 0)


def _mean(*values: Any) -> Any:
    if not isinstance(values[0], Tensor) or not values[0].is_floating_point():
        return values[0]
    return torch.stack(values).mean(0)
