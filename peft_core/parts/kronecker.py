"""The weight change of LoKr and KronA: Kronecker products, with the kernel that runs them fast (`kronecker_linear`)."""

import math

import torch
from torch import Tensor, nn

from peft_core.errors import PeftError
from peft_core.grafts.graft import Delta
from peft_core.kernels.kronecker_linear import kronecker_linear, kronecker_sum
from peft_core.parts.factors import add_scaled, is_spatial, new_parameter, rows_of, split_dimension, tucker

Split = tuple[tuple[int, int], tuple[int, int]]
"""out = l·k and in = m·n, as ((l, k), (m, n))."""


def split_of(weight: Tensor, rows: tuple[int, int] | None, factor: int) -> Split:
    """The split of a weight's outputs and inputs by a factor (see `split_dimension`)."""
    if factor < 1 and factor != -1:
        raise PeftError(f"the factor {factor} splits nothing: it must be 1 or more, or -1 for the most even split.")
    return split_dimension(rows_of(weight, rows), factor), split_dimension(weight.shape[1], factor)


class Kronecker(Delta):
    """W' = W + s·w1 ⊗ w2 with out = l·k, in = m·n: w1 (l, m), w2 (k, n, kh, kw), each whole or the product of
    w_a (…, r) and w_b (r, …); w2 also by a Tucker core t2 (r, r, kh, kw). The last factor of w2 is zero: W' = W at step 0."""

    commutes = True
    needs_matrix = True
    rebuilds_input = True
    lead: tuple[int, ...] = ()
    """What stands before each tensor's own shape."""

    def __init__(self, weight: Tensor, rows: tuple[int, int] | None, rank: int, scale: float, split: Split,
                 whole1: bool, whole2: bool, cores: bool):  # fmt: skip
        super().__init__(rows)
        (rows_1, k), (m, n) = split
        self.inner = (k, n, *weight.shape[2:])
        self.w1 = self.w1_a = self.w1_b = self.w2 = self.w2_a = self.w2_b = self.t2 = None

        def new(*shape: int) -> nn.Parameter:
            return new_parameter(weight, *self.lead, *shape)

        if whole1:
            self.w1 = new(rows_1, m)
        else:
            self.w1_a, self.w1_b = new(rows_1, rank), new(rank, m)
        if whole2:
            self.w2 = new(*self.inner)
        elif cores and is_spatial(weight):
            self.t2 = new(rank, rank, *weight.shape[2:])
            self.w2_a, self.w2_b = new(rank, k), new(rank, n)
        else:
            self.w2_a, self.w2_b = new(k, rank), new(rank, math.prod(self.inner[1:]))
        for parameter in (self.w1, self.w1_a, self.w1_b, self.w2_a, self.t2):
            if parameter is not None:
                for one in parameter if self.lead else (parameter,):
                    nn.init.kaiming_uniform_(one, a=math.sqrt(5))
        nn.init.zeros_(self.w2 if self.w2_b is None else self.w2_b)  # type: ignore[arg-type]
        self.scale = 1.0 if self.w1 is not None and self.w2 is not None else scale

    def factors(self) -> tuple[Tensor, Tensor]:
        """w1 (G, l, m) and w2 (G, k, n, …)."""
        w2 = self.w2
        with torch.autocast(next(self.parameters()).device.type, enabled=False):
            w1 = self.w1 if self.w1 is not None else self.w1_a @ self.w1_b  # type: ignore[operator]
            if self.t2 is not None:
                w2 = tucker(self.t2, self.w2_a, self.w2_b)  # type: ignore[arg-type,assignment]
            elif w2 is None:
                w2 = (self.w2_a @ self.w2_b).view(*self.lead, *self.inner)  # type: ignore[operator]
        return (w1, w2) if self.lead else (w1.unsqueeze(0), w2.unsqueeze(0))  # type: ignore[union-attr,return-value]

    def forward(self, weight: Tensor) -> Tensor:
        return add_scaled(weight, kronecker_sum(*self.factors()), self.scale)

    kernel = staticmethod(kronecker_linear)


class Kroneckers(Kronecker):
    """W' = W + s·Σ_g w1_g ⊗ w2_g: every tensor of `Kronecker` once for each of the groups, one above the other."""

    def __init__(self, groups: int, *args: object) -> None:
        self.lead = (groups,)
        super().__init__(*args)  # type: ignore[arg-type]
