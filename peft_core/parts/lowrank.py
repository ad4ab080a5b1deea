"""The low-rank weight change of LoRA, with the kernels that run it fast (`lowrank_linear`, `lowrank_conv`, `quantised`)."""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from peft_core.grafts.graft import Delta, match
from peft_core.kernels.lowrank_conv import lowrank_conv
from peft_core.kernels.lowrank_linear import lowrank_linear
from peft_core.kernels.quantised import packed_linear


class LowRank(Delta):
    """W' = W + s·B A on a linear (or rows of a fused one) or on a convolution flattened to (out, in·kh·kw).

    A (r, in) is Kaiming-uniform with a = √5, B (out, r) is zero: W' = W at step 0. With `dropout` the change reads a
    dropped-out input of its own, y = W x + s·B A drop(x), which no single weight can express in training.
    """

    additive = True
    commutes = True
    rebuilds_input = True

    needs_matrix = True

    def __init__(self, weight: Tensor, rows: tuple[int, int] | None, rank: int, scale: float, dropout: float = 0.0):
        super().__init__(rows)
        out = weight.shape[0] if rows is None else rows[1] - rows[0]
        options: dict[str, Any] = dict(device=weight.device, dtype=torch.promote_types(weight.dtype, torch.float32))
        self.A = nn.Parameter(torch.empty(rank, weight[0].numel(), **options))
        self.B = nn.Parameter(torch.zeros(out, rank, **options))
        nn.init.kaiming_uniform_(self.A, a=math.sqrt(5))
        self.scale = scale
        self.dropout = nn.Dropout(dropout) if dropout else None

    def factors(self) -> tuple[Tensor, Tensor]:
        """A (r, in) and B (out, r) of the change as it acts now; a subclass makes them of what it trains."""
        return self.A, self.B

    def factors_at_use(self) -> tuple[Tensor, Tensor]:
        """The factors outside of training."""
        trains = self.training
        self.training = False
        try:
            return self.factors()
        finally:
            self.training = trains

    def forward(self, weight: Tensor) -> Tensor:
        down, up = self.factors()
        change = (up @ down).view(weight.shape)
        return torch.add(weight, change, alpha=self.scale).to(weight.dtype)

    @property
    def reads_input(self) -> bool:
        return self.dropout is not None and self.training

    def on_input(self, x: Tensor, run) -> Tensor:
        """s·B A drop(x) as two small layers; `run(x, A)` applies A as the stock layer would apply its weight."""
        down, up = self.factors()
        x = x if self.dropout is None else self.dropout(x)
        inner = run(match(x, down), down)
        mixed = inner.movedim(1, -1) if inner.dim() == 4 else inner
        out = F.linear(mixed, up * (self.scale * self.factor))
        return out.movedim(-1, 1) if inner.dim() == 4 else out

    kernel = staticmethod(lowrank_linear)
    conv_kernel = staticmethod(lowrank_conv)
    packed_kernel = staticmethod(packed_linear)
