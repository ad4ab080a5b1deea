"""Learnt factors for what leaves or enters a weight: l ⊙ (W x + b), or W (l ⊙ x) + b, both without a dense gradient."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from peft_core.grafts.graft import Delta
from peft_core.grafts.weight_changes import changed_weight
from peft_core.kernels.formed import mapped
from peft_core.parts.factors import new_parameter, rows_of


class OutputScale(Delta):
    """W' = l W and b' = l b, row by row, with l (out) starting at 1."""

    def __init__(self, weight: Tensor, rows: tuple[int, int] | None):
        super().__init__(rows)
        self.scale = new_parameter(weight, rows_of(weight, rows))
        nn.init.ones_(self.scale)

    def forward(self, weight: Tensor) -> Tensor:
        return (weight * self.scale.view(-1, *[1] * (weight.dim() - 1))).to(weight.dtype)

    def bias(self, bias: Tensor | None) -> Tensor | None:
        return None if bias is None else (bias * self.scale).to(bias.dtype)

    @staticmethod
    def kernel(x: Tensor, weight: Tensor, bias: Tensor | None, deltas: list["OutputScale"]) -> Tensor:
        y = F.linear(x, weight, bias)
        for delta in deltas:
            scale = _weighed(delta.scale, delta.factor)
            if delta.rows is not None:
                scale = F.pad(scale, (delta.rows[0], weight.shape[0] - delta.rows[1]), value=1.0)
            y = (y * scale).to(y.dtype)
        return y


class InputScale(Delta):
    """W' = W diag(l), with l (in) starting at 1: each input feature, or input channel of a convolution, is scaled."""

    needs_matrix = True
    rebuilds_input = True

    @classmethod
    def accepts(cls, module: nn.Module, weight: Tensor, rows: tuple[int, int] | None) -> str | None:
        if getattr(module, "groups", 1) > 1:
            return "the groups of this convolution read different inputs by the same rows"
        return super().accepts(module, weight, rows)

    def __init__(self, weight: Tensor, rows: tuple[int, int] | None):
        super().__init__(rows)
        self.scale = new_parameter(weight, weight.shape[1])
        nn.init.ones_(self.scale)

    def forward(self, weight: Tensor) -> Tensor:
        return (weight * self.scale.view(-1, *[1] * (weight.dim() - 2))).to(weight.dtype)

    @staticmethod
    def kernel(x: Tensor, weight: Tensor, bias: Tensor | None, deltas: list["InputScale"]) -> Tensor:
        if any(delta.rows is not None for delta in deltas):
            return F.linear(x, changed_weight(weight, deltas), bias)  # type: ignore[arg-type]
        for delta in deltas:
            x = mapped(x, _scaled, _weighed(delta.scale, delta.factor))
        return F.linear(x, weight, bias)


def _scaled(x: Tensor, scale: Tensor) -> Tensor:
    return (x * scale).to(x.dtype)


def _weighed(scale: Tensor, factor: float) -> Tensor:
    return scale if factor == 1.0 else torch.lerp(torch.ones_like(scale), scale, factor)
