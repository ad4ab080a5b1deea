"""The fast linear with a low-rank change: y = x (W + Σ s·B A)ᵀ + b, over rows of W where projections are fused.

Forming W + s·B A once costs r/N of the product itself (N tokens), so forward and dx run at the frozen linear's speed.
The gradients come from skinny products and never form the dense dW:
    dA = s · (Bᵀ gᵀ) x        dBᵀ = s · (A xᵀ) g
In this orientation the small factor stands left, which BLAS runs 2–6 times faster than the transposes.
"""

import math
from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from peft_core.grafts import Delta, match
from peft_core.rebuild import autocast_dtype, pieces, source_of


class Part(NamedTuple):
    """One change: `scale` · B A on rows `rows` of the weight."""

    scale: float
    rows: tuple[int, int] | None


def merged(weight: Tensor, parts: tuple[Part, ...], factors: tuple[Tensor, ...]) -> Tensor:
    """W + Σ s·B A, computed in the factors' precision where that is the higher one."""
    dtype = torch.promote_types(weight.dtype, factors[0].dtype)
    if len(parts) == 1 and parts[0].rows is None:
        return torch.addmm(weight.to(dtype), factors[1], factors[0], alpha=parts[0].scale)
    out = weight.to(dtype, copy=True)
    for (scale, rows), a, b in zip(parts, factors[::2], factors[1::2], strict=True):
        (out if rows is None else out[rows[0] : rows[1]]).addmm_(b, a, alpha=scale)
    return out


class _LowRankLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, kept: Tensor, maker: nn.Module | None,
                parts: tuple[Part, ...], dtype: torch.dtype | None, *factors: Tensor) -> Tensor:  # fmt: skip
        with torch.autocast(x.device.type, enabled=False):
            inner = x if dtype is None else x.to(dtype)
            new = merged(weight, parts, factors).to(inner.dtype)
            y = F.linear(inner, new, None if bias is None else bias.to(inner.dtype))
        ctx.parts, ctx.maker, ctx.dtype, ctx.autocast = parts, maker, inner.dtype, dtype
        # a weight cast by autocast is kept, as autocast keeps the frozen linear's; else it is formed again
        cast = new if new.dtype != weight.dtype else None
        ctx.save_for_backward(inner if maker is None else kept, weight, cast, *factors)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        kept, weight, new, *factors = ctx.saved_tensors
        g = grad.reshape(-1, grad.shape[-1]).to(ctx.dtype)
        back = through_up(g, ctx.parts, factors[1::2])
        dx = dw = db = None
        if ctx.needs_input_grad[0]:
            new = merged(weight, ctx.parts, tuple(factors)).to(g.dtype) if new is None else new
            dx = (g @ new).view(*grad.shape[:-1], -1)
        d_factors, dw = factor_gradients(
            pieces(kept, ctx.maker, ctx.autocast),
            g,
            back,
            ctx.parts,
            factors,
            weight if ctx.needs_input_grad[1] else None,
        )
        if ctx.needs_input_grad[2]:
            db = g.sum(0)
        return dx, dw, db, None, None, None, None, *d_factors


def through_up(g: Tensor, parts: tuple[Part, ...], ups: list[Tensor]) -> Tensor:
    """s · Bᵀ gᵀ of every part, one above the other: (Σ r, N)."""
    return _stack(
        [(up.to(g.dtype).t() @ _rows(g, part).t()).mul_(part.scale) for part, up in zip(parts, ups, strict=True)]
    )


def factor_gradients(
    inputs: Iterable[Tensor],
    g: Tensor,
    back: Tensor,
    parts: tuple[Part, ...],
    factors: list[Tensor],
    weight: Tensor | None,
) -> tuple[list[Tensor], Tensor | None]:
    """dA, dB of every part, and dW where a weight is given. inputs: x N in, piece by piece · g: N out · back: s · Bᵀ gᵀ."""
    downs = factors[::2]
    sizes = [a.shape[0] for a in downs]
    stacked = _stack([a.to(g.dtype) for a in downs])
    inner = torch.empty_like(back)
    d_down = torch.zeros(stacked.shape, dtype=torch.promote_types(g.dtype, torch.float32), device=g.device)
    dw = None if weight is None else torch.zeros_like(weight)
    start = 0
    for x in inputs:
        x, rows = x.to(g.dtype), slice(start, start := start + len(x))
        inner[:, rows] = stacked @ x.t()
        d_down += back[:, rows] @ x
        if dw is not None:
            dw += g[rows].t() @ x
    d_up = [(u @ _rows(g, part)).t().mul_(part.scale) for part, u in zip(parts, inner.split(sizes), strict=True)]
    pairs = zip(downs, d_down.split(sizes), d_up, strict=True)
    return [grad.to(a.dtype) for a, *pair in pairs for grad in pair], dw


def _stack(rows: list[Tensor]) -> Tensor:
    return rows[0] if len(rows) == 1 else torch.cat(rows)


def _rows(g: Tensor, part: Part) -> Tensor:
    return g if part.rows is None else g[:, part.rows[0] : part.rows[1]]


def lowrank_linear(x: Tensor, weight: Tensor, bias: Tensor | None, deltas: list["LowRank"]) -> Tensor:
    """F.linear(x, W + Σ s·B A, b): x (…, in), W (out, in), A (r, in), B (rows, r)."""
    parts = tuple(Part(delta.scale * delta.factor, delta.rows) for delta in deltas)
    factors = [factor for delta in deltas for factor in (delta.A, delta.B)]
    source = None if torch.compiler.is_compiling() else source_of(x)
    kept, maker = (x, None) if source is None else (source.x, source.maker)
    return _LowRankLinear.apply(  # type: ignore[no-any-return]
        x, weight, bias, kept.detach(), maker, parts, autocast_dtype(x.device.type), *factors
    )


class LowRank(Delta):
    """W' = W + s·B A on a linear (or rows of a fused one) or on a convolution flattened to (out, in·kh·kw).

    A (r, in) is Kaiming-uniform with a = √5, B (out, r) is zero: W' = W at step 0. With `dropout` the change reads a
    dropped-out input of its own, y = W x + s·B A drop(x), which no single weight can express in training.
    """

    additive = True
    rebuilds_input = True

    def __init__(self, weight: Tensor, rows: tuple[int, int] | None, rank: int, scale: float, dropout: float = 0.0):
        super().__init__(rows)
        out = weight.shape[0] if rows is None else rows[1] - rows[0]
        options: dict[str, Any] = dict(device=weight.device, dtype=torch.promote_types(weight.dtype, torch.float32))
        self.A = nn.Parameter(torch.empty(rank, weight[0].numel(), **options))
        self.B = nn.Parameter(torch.zeros(out, rank, **options))
        nn.init.kaiming_uniform_(self.A, a=math.sqrt(5))
        self.scale = scale
        self.dropout = nn.Dropout(dropout) if dropout else None

    def forward(self, weight: Tensor) -> Tensor:
        change = (self.B @ self.A).view(weight.shape)
        return torch.add(weight, change, alpha=self.scale).to(weight.dtype)

    @property
    def reads_input(self) -> bool:
        return self.dropout is not None and self.training

    def on_input(self, x: Tensor, run) -> Tensor:
        """s·B A drop(x) as two small layers; `run(x, A)` applies A as the stock layer would apply its weight."""
        x = x if self.dropout is None else self.dropout(x)
        inner = run(match(x, self.A), self.A)
        mixed = inner.movedim(1, -1) if inner.dim() == 4 else inner
        out = F.linear(mixed, self.B * (self.scale * self.factor))
        return out.movedim(-1, 1) if inner.dim() == 4 else out

    kernel = staticmethod(lowrank_linear)
