"""Changes of what a weight reads, x ← x + U (D x + d) + u: linear in x, so they merge into the weight that reads it.

W' = W + (W U) D and b' = b + W (U d + u). Dropout in training stands between D and U.
"""

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from peft_core.grafts.graft import Delta, Graft
from peft_core.grafts.shared import Reference


class LinearMap(nn.Module):
    """x → U drop(D x + d) + u; a subclass says what they are."""

    dropout: float = 0.0

    def factors(self) -> tuple[Tensor, Tensor, Tensor]:
        """U (D, h), D (h, D) and the constant U d + u (D)."""
        raise NotImplementedError(f"{type(self).__name__} must define factors()")


class InputMap(Graft):
    """x ← x + change(x) for what a module receives."""

    def __init__(self, change: nn.Module) -> None:
        super().__init__()
        self.change = change

    def before(self, x: Tensor) -> Tensor:
        return x + (self.change(x) * self.factor if self.factor != 1.0 else self.change(x)).to(x.dtype)


class MappedInput(Delta):
    """W' = W + (W U) D, b' = b + W (U d + u): x ← x + change(x), written as a change of the whole weight that reads x.

    Args:
        change: a `LinearMap`, or a reference to one that several weights share.
    """

    needs_matrix = shifts = maps_input = kernel_reads_input = True

    def __init__(self, change: nn.Module | Reference) -> None:
        super().__init__()
        if isinstance(change, nn.Module):
            self.own = change
        else:
            self.found = change

    @property
    def change(self) -> Any:
        return self.own if "own" in self._modules else self.found()

    @property
    def reads_input(self) -> bool:
        change = self.change
        return bool(change.dropout) and change.training

    def forward(self, weight: Tensor) -> Tensor:
        up, down, _ = self.change.factors()
        return weight + (weight.to(up.dtype) @ up @ down).to(weight.dtype)

    def shift(self, weight: Tensor) -> Tensor:
        constant = self.change.factors()[2]
        return weight.to(constant.dtype) @ constant

    def on_input(self, x: Tensor, run: Any) -> Tensor:
        return self.change(x) * self.factor

    @staticmethod
    def kernel(x: Tensor, weight: Tensor, bias: Tensor | None, deltas: list["MappedInput"]) -> Tensor:
        for delta in reversed(deltas):  # the last one's weight is what the others made of W
            change = delta.change(x)
            x = x + (change if delta.factor == 1.0 else change * delta.factor).to(x.dtype)
        return F.linear(x, weight, bias)
