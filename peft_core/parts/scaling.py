"""Learnt factors for what leaves or enters a weight: l ⊙ (W x + b), or W (l ⊙ x) + b, both without a dense gradient.

The one keeps what it gives (see `scale_shift`), the other what x was made of.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from peft_core.grafts.graft import Delta
from peft_core.grafts.weight_changes import changed_weight
from peft_core.kernels.scaled_inputs import scaled_inputs_linear
from peft_core.kernels.twice import small_rows
from peft_core.parts.factors import new_parameter, rows_of
from peft_core.parts.scale_shift import scaled_and_shifted


class _Scale(Delta):
    """Holds l, starting at 1."""

    scale: nn.Parameter

    @torch.no_grad()
    def weak(self, scale: Tensor, deltas: Sequence[Any]) -> Tensor | None:
        """What l hides."""
        others = ([delta.factor for delta in deltas], scale.device)
        return self.once_a_step((delta.scale for delta in deltas), others, lambda: small_rows(scale))


class OutputScale(_Scale):
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
        scale = deltas[0].of_all(len(weight))
        for delta in deltas[1:]:
            scale = scale * delta.of_all(len(weight))
        if weight.requires_grad or torch.compiler.is_compiling():
            y = F.linear(x, weight, bias)
            return (y * scale).to(y.dtype)
        weak = deltas[0].weak(scale, deltas)
        return scaled_and_shifted(x, weight, bias, scale, torch.zeros_like(scale), weak)

    def of_all(self, out: int) -> Tensor:
        """The factors of all outputs, 1 outside its rows: (out)."""
        scale = _weighed(self.scale, self.factor)
        return scale if self.rows is None else F.pad(scale, (self.rows[0], out - self.rows[1]), value=1.0)


class InputScale(_Scale):
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
        if any(delta.rows is not None for delta in deltas) or weight.requires_grad or not torch.is_grad_enabled():
            return F.linear(x, changed_weight(weight, deltas), bias)  # type: ignore[arg-type]
        scale = _weighed(deltas[0].scale, deltas[0].factor)
        for delta in deltas[1:]:
            scale = scale * _weighed(delta.scale, delta.factor)
        if torch.compiler.is_compiling():
            return F.linear((x * scale).to(x.dtype), weight, bias)
        return scaled_inputs_linear(x, weight, bias, scale, deltas[0].weak(scale, deltas))


def _weighed(scale: Tensor, factor: float) -> Tensor:
    return scale if factor == 1.0 else torch.lerp(torch.ones_like(scale), scale, factor)
