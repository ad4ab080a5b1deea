"""The fast linear of DoRA: y = x W'ᵀ + b with W' = c V, V = W + s·B A, c = m/‖V‖ row by row, ‖V‖ held constant in backward.

Like the low-rank linear it never forms the dense gradient: with g' = g c the factors' gradients are LoRA's, and that of m
comes from the output, dm = Σ g ⊙ (y − b) / m. Where that division loses digits (m near 0, or in 16 bits beside a large b)
those rows of V x / ‖V‖ are computed again.
"""

from typing import Annotated, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from peft_core.grafts.weight_changes import changed_bias, changed_weight
from peft_core.kernels.column_sums import column_products, column_sums
from peft_core.kernels.lowrank_linear import Part, factor_gradients, merged, through_up
from peft_core.kernels.rebuild import Recipe, autocast_dtype, kept_for, pieces, whole
from peft_core.kernels.twice import gradients, is_differentiated, spread_of, weak_rows
from peft_core.parts.lowrank import LowRank


def row_norms(weight: Tensor) -> Annotated[Tensor, "out"]:
    """‖·‖₂ of each output's weights, (out); never 0, so that an all-zero row stays one."""
    return weight.flatten(1).norm(dim=1).clamp_min(torch.finfo(weight.dtype).tiny)


def _ratio(v: Tensor, parts: tuple[Part, ...], magnitudes: tuple[Tensor, ...]) -> Tensor:
    """c (out): m/‖V‖ on the parts' rows, 1 elsewhere."""
    if parts[0].rows is None:
        return magnitudes[0] / row_norms(v)
    c = torch.ones(v.shape[0], dtype=v.dtype, device=v.device)
    for (_, rows), m in zip(parts, magnitudes, strict=True):
        assert rows is not None
        c[rows[0] : rows[1]] = m / row_norms(v[rows[0] : rows[1]])
    return c


class _DecomposedLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, recipe: Recipe | None, kept: tuple[Tensor, ...],
                parts: tuple[Part, ...], dtype: torch.dtype | None, weak: Tensor | None, *tensors: Tensor) -> Tensor:  # fmt: skip
        factors, magnitudes = tensors[: 2 * len(parts)], tensors[2 * len(parts) :]
        with torch.autocast(x.device.type, enabled=False):
            inner = x if dtype is None else x.to(dtype)
            v = merged(weight, parts, factors)
            c = _ratio(v, parts, magnitudes)
            new = (v * c.unsqueeze(1)).to(inner.dtype)
            y = F.linear(inner, new, None if bias is None else bias.to(inner.dtype))
        ctx.parts, ctx.recipe, ctx.dtype, ctx.kept = parts, recipe, inner.dtype, len(kept)
        ctx.was_cast = dtype is not None
        ctx.save_for_backward(*(kept if recipe else (inner,)), y, weight, bias, c, weak, *tensors)
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        saved = ctx.saved_tensors
        kept, (y, weight, bias, c, weak, *tensors) = saved[: ctx.kept], saved[ctx.kept :]
        factors, magnitudes = tensors[: 2 * len(ctx.parts)], tensors[2 * len(ctx.parts) :]
        if is_differentiated():
            return _differentiable(ctx, grad, whole(ctx.recipe, kept), weight, bias, tensors)
        g = grad.reshape(-1, grad.shape[-1]).to(ctx.dtype)
        scaled = g * c.to(g.dtype)
        back = through_up(scaled, ctx.parts, factors[1::2])
        dx = None
        if ctx.needs_input_grad[0]:
            dx = (scaled @ merged(weight, ctx.parts, factors).to(g.dtype)).view(*grad.shape[:-1], weight.shape[1])
        x = None if weak is None else whole(ctx.recipe, kept).reshape(-1, weight.shape[1]).to(ctx.dtype)
        d_factors, dw = factor_gradients(
            pieces(ctx.recipe, kept) if weak is None else iter((x,)),  # type: ignore
            scaled,
            back,
            ctx.parts,
            factors,
            weight if ctx.needs_input_grad[1] else None,
        )
        db, dots = (each.to(c.dtype) for each in column_sums(g, y.view(g.shape)))
        if bias is not None:
            dots = dots - bias * db
        magnitude = torch.ones_like(c)
        for part, m in zip(ctx.parts, magnitudes, strict=True):
            magnitude[slice(None) if part.rows is None else slice(*part.rows)] = m
        unit = dots / magnitude  # Σ g ⊙ V x / ‖V‖
        if weak is not None:
            v = merged(weight, ctx.parts, factors)[weak]
            unit[weak] = column_products(g[:, weak], x @ v.to(g.dtype).t()).to(c.dtype) / row_norms(v)  # type: ignore
        d_m = [(unit if part.rows is None else unit[slice(*part.rows)]).to(m.dtype)
               for part, m in zip(ctx.parts, magnitudes, strict=True)]  # fmt: skip
        return dx, dw, db if ctx.needs_input_grad[2] else None, None, None, None, None, None, *d_factors, *d_m


def _differentiable(ctx: Any, grad: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, tensors: Any) -> tuple:
    def run(x: Tensor, weight: Tensor, bias: Tensor | None, *tensors: Tensor) -> Tensor:
        v = merged(weight, ctx.parts, tensors[: 2 * len(ctx.parts)])
        c = _ratio(v.detach(), ctx.parts, tensors[2 * len(ctx.parts) :])
        return F.linear(x, (v * c.unsqueeze(1)).to(x.dtype), bias)

    dx, dw, db, *rest = gradients(run, (x, weight, bias, *tensors), grad, ctx.was_cast)
    return dx, dw, db, None, None, None, None, None, *rest


def decomposed_linear(
    x: Annotated[Tensor, "... in"],
    weight: Annotated[Tensor, "out in"],
    bias: Annotated[Tensor | None, "out"],
    deltas: list["Decomposed"],
) -> Annotated[Tensor, "... out"]:
    """F.linear(x, m V/‖V‖, b): x (…, in), W (out, in), on rows of W where the deltas have some."""
    if _overlap(deltas) or any(delta.factor != 1.0 for delta in deltas) or torch.compiler.is_compiling():
        return F.linear(x, changed_weight(weight, deltas), changed_bias(bias, deltas, weight))  # type: ignore[arg-type]
    parts = tuple(Part(delta.scale, delta.rows) for delta in deltas)
    dtype = autocast_dtype(x.device.type)
    weak = deltas[0].weak(x, weight, bias, dtype or x.dtype, deltas)
    tensors = [factor for delta in deltas for factor in (delta.A, delta.B)] + [delta.magnitude for delta in deltas]
    return _DecomposedLinear.apply(  # type: ignore[no-any-return]
        x, weight, bias, *kept_for(x), parts, dtype, weak, *tensors
    )


def _overlap(deltas: list["Decomposed"]) -> bool:
    """Whether two changes share a row: then the second one's norm is that of the first one's result."""
    if any(delta.rows is None for delta in deltas):
        return len(deltas) > 1
    spans = sorted(delta.rows for delta in deltas if delta.rows is not None)
    return any(stop > start for (_, stop), (start, _) in zip(spans, spans[1:], strict=False))


class Decomposed(LowRank):
    """W' = m ⊙ V/‖V‖, V = W + s·B A, norms over each output's weights; m (out) starts as ‖W‖: W' = W at step 0."""

    additive = False
    commutes = False

    needs_matrix = True

    def __init__(self, weight: Tensor, rows: tuple[int, int] | None, rank: int, scale: float, current: Tensor):
        super().__init__(weight, rows, rank, scale)
        self.magnitude = nn.Parameter(row_norms(current.to(self.A.dtype)))

    def forward(self, weight: Tensor) -> Tensor:
        v = torch.add(weight, (self.B @ self.A).view(weight.shape), alpha=self.scale)
        ratio = self.magnitude / row_norms(v.detach())
        return (v * ratio.view(-1, *[1] * (v.dim() - 1))).to(weight.dtype)

    @torch.no_grad()
    def weak(self, x: Tensor, weight: Tensor, bias: Tensor | None, dtype: torch.dtype, deltas: list["Decomposed"]
             ) -> Tensor | None:  # fmt: skip
        """Rows of V x / ‖V‖ that are computed again, of all these changes of one weight."""

        def look() -> Tensor | None:
            magnitude = torch.full((len(weight),), torch.inf, dtype=self.magnitude.dtype, device=weight.device)
            for delta in deltas:
                magnitude[slice(None) if delta.rows is None else slice(*delta.rows)] = delta.magnitude.detach()
            return weak_rows(bias, magnitude, dtype, lambda: spread_of(x, weight) * (magnitude / row_norms(weight)))

        return self.once_a_step((delta.magnitude for delta in deltas), (dtype, x.device), look)

    kernel = staticmethod(decomposed_linear)
    conv_kernel = None
