"""The fast linear and convolution under sparse changes: W' = W + scatter(values), over rows of W where projections are fused.

Forming W' costs one copy of W, little beside the product, so forward and dx run at the frozen layer's speed, and W' is formed
again for the backward rather than kept. The values' gradient is that of the chosen entries alone,
    d values[n] = Σ_b g[b, i_n] x[b, j_n],
on a CPU by as many dot products where they are few; else the dense product is formed for a moment and gathered from.
"""

import warnings
from collections.abc import Iterable, Sequence
from functools import cache
from typing import Annotated, Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from peft_core.kernels.lowrank_linear import own_rows
from peft_core.kernels.rebuild import Recipe, autocast_dtype, cast_of, keep, kept_for, kept_of, pieces, whole
from peft_core.kernels.twice import gradients, is_differentiated

SAMPLED_BELOW = 0.04
"""Share of a weight's entries below which dot products are faster than the dense product, on a CPU."""
CHUNK, TURNED = 128, 32
"""Tokens of a dot product at a time: what both factors hold of them stays in the cache; and of one turn to columns."""


class Part(NamedTuple):
    """One change: `factor` times its values, on rows `rows` of the weight."""

    factor: float
    rows: tuple[int, int] | None

    def of(self, weight: Tensor) -> Tensor:
        return weight if self.rows is None else weight[self.rows[0] : self.rows[1]]


def scattered(weight: Tensor, indices: Tensor, values: Tensor) -> Tensor:
    """W + scatter(values), computed in the values' precision where that is the higher one, given back in that of W."""
    dtype = torch.promote_types(weight.dtype, values.dtype)
    flat = weight.to(dtype).flatten().index_add(0, indices, values.to(dtype))
    return flat.view(weight.shape).to(weight.dtype)


def merged(weight: Tensor, parts: Sequence[Part], pairs: Sequence[Tensor]) -> Tensor:
    """W with every part's values added; pairs: values, indices of every part in turn."""
    values = pairs[::2]
    dtype = torch.promote_types(weight.dtype, values[0].dtype)
    out = weight.to(dtype, copy=True, memory_format=torch.contiguous_format)
    for part, added, indices in zip(parts, values, pairs[1::2], strict=True):
        part.of(out).view(-1).index_add_(0, indices, added.to(dtype), alpha=part.factor)
    return out


class _SparseLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, recipe: Recipe | None, kept: tuple[Tensor, ...],
                parts: tuple[Part, ...], dtype: torch.dtype | None, *pairs: Tensor) -> Tensor:  # fmt: skip
        x = x if dtype is None else x.to(dtype)
        with torch.autocast(x.device.type, enabled=False):
            new = merged(weight, parts, pairs).to(x.dtype)
            y = F.linear(x, new, None if bias is None else bias.to(x.dtype))
        ctx.parts = parts
        keep(ctx, x, recipe, kept, dtype, weight, bias, cast_of(new, weight), *pairs)
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        kept, (weight, bias, new, *pairs) = kept_of(ctx)
        if is_differentiated():
            dx, dw, db, *rest = gradients(
                lambda x, w, b, *p: F.linear(x, merged(w, ctx.parts, p).to(x.dtype), b),
                (whole(ctx.recipe, kept), weight, bias, *pairs), grad, ctx.was_cast,
            )  # fmt: skip
            return dx, dw, db, None, None, None, None, *rest
        g = grad.reshape(-1, grad.shape[-1]).to(ctx.dtype)
        dx = dw = db = None
        if ctx.needs_input_grad[0]:
            dx = g @ (merged(weight, ctx.parts, pairs).to(g.dtype) if new is None else new)
            dx = dx.view(*grad.shape[:-1], weight.shape[1])
        inputs = (piece.to(g.dtype) for piece in pieces(ctx.recipe, kept))
        if ctx.needs_input_grad[1]:
            dw = product(inputs, g)
            found = [gathered(part.of(dw), indices, part) for part, indices in zip(ctx.parts, pairs[1::2], strict=True)]
        else:
            found = value_gradients(inputs, g, ctx.parts, pairs[1::2])
        if ctx.needs_input_grad[2]:
            db = g.sum(0)
        rest = [each for d, values in zip(found, pairs[::2], strict=True) for each in (d.to(values.dtype), None)]
        return dx, dw, db, None, None, None, None, *rest


def value_gradients(
    inputs: Iterable[Tensor], g: Annotated[Tensor, "N out"], parts: Sequence[Part], indices: Sequence[Tensor]
) -> list[Tensor]:
    """The gradients of every part's values; inputs: x N in, piece by piece."""
    if torch.compiler.is_compiling() or g.device.type != "cpu":
        dense = product(inputs, g)
        return [gathered(part.of(dense), chosen, part) for part, chosen in zip(parts, indices, strict=True)]
    sampled: list[Tensor | None] = []
    dense_parts: list[Tensor | None] = [None] * len(parts)
    start, dtype = 0, torch.promote_types(g.dtype, torch.float32)
    for x in inputs:
        rows, start = g[start : start + len(x)], start + len(x)
        if not sampled:
            sampled = [
                _pattern(chosen, (_width(part, g), x.shape[1]), dtype) if sparse_enough(chosen, part, g, x) else None
                for part, chosen in zip(parts, indices, strict=True)
            ]
        for n, part in enumerate(parts):
            if sampled[n] is None:
                more = own_rows(rows, part).t() @ x
                dense_parts[n] = more if dense_parts[n] is None else dense_parts[n] + more  # type: ignore[operator]
        if any(pattern is not None for pattern in sampled):
            _add_dots(sampled, parts, rows, x, dtype)
    found = []
    for n, (part, chosen) in enumerate(zip(parts, indices, strict=True)):
        pattern, dense = sampled[n], dense_parts[n]
        if pattern is not None:
            found.append(pattern.values().mul_(part.factor))
        else:
            assert dense is not None
            found.append(gathered(dense, chosen, part))
    return found


def sparse_enough(chosen: Tensor, part: Part, g: Tensor, x: Tensor) -> bool:
    return 0 < len(chosen) <= SAMPLED_BELOW * _width(part, g) * x.shape[1]


def _width(part: Part, g: Tensor) -> int:
    return g.shape[1] if part.rows is None else part.rows[1] - part.rows[0]


@cache
def _announce() -> None:
    """Torch says once a process that compressed rows are in beta."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.sparse_csr_tensor(torch.tensor([0, 1]), torch.tensor([0]), torch.ones(1), (1, 1), check_invariants=False)


def _pattern(chosen: Tensor, shape: tuple[int, int], dtype: torch.dtype) -> Tensor:
    """Zeros at the chosen entries, in compressed rows."""
    _announce()
    rows = chosen // shape[1]
    ends = torch.searchsorted(rows, torch.arange(shape[0] + 1, dtype=rows.dtype), out_int32=True)
    zeros = torch.zeros(len(chosen), dtype=dtype)
    return torch.sparse_csr_tensor(ends, chosen - rows * shape[1], zeros, shape, check_invariants=False)


def _add_dots(
    patterns: Sequence[Tensor | None], parts: Sequence[Part], g: Tensor, x: Tensor, dtype: torch.dtype
) -> None:
    turn = _Turn(dtype)
    for start in range(0, len(x), CHUNK):
        x_t = turn(x[start : start + CHUNK], "x")
        for n, (part, pattern) in enumerate(zip(parts, patterns, strict=True)):
            if pattern is not None:
                g_t = turn(own_rows(g[start : start + CHUNK], part), n)
                torch.sparse.sampled_addmm(pattern, g_t, x_t.t(), out=pattern)


class _Turn:
    """Transposes chunks of rows by products with a small identity: BLAS packs what it reads, while a strided copy of wide
    rows misses the cache at every element."""

    def __init__(self, dtype: torch.dtype) -> None:
        self.one, self.kept = torch.eye(TURNED, dtype=dtype), dict[tuple[Any, int], Tensor]()

    def __call__(self, x: Tensor, use: Any) -> Tensor:
        x = x.to(self.one.dtype)
        rows, width = x.shape
        if (use, rows) not in self.kept:  # fresh memory would cost more than what is written to it
            self.kept[use, rows] = x.new_empty(width, rows)
        out = self.kept[use, rows]
        for start in range(0, rows, TURNED):
            part = x[start : start + TURNED]
            torch.mm(part.t(), self.one[: len(part), : len(part)], out=out[:, start : start + TURNED])
        return out


def product(inputs: Iterable[Tensor], g: Tensor) -> Tensor:
    """The dense gᵀ x, in float32 or better where it is summed over pieces."""
    start, total = 0, None
    for x in inputs:
        rows, start = g[start : start + len(x)].t(), start + len(x)
        if total is None:
            total = rows @ x
        elif rows.dtype == total.dtype and total.element_size() >= 4:
            total.addmm_(rows, x)
        else:
            total = total.to(torch.promote_types(total.dtype, torch.float32)).add_(rows @ x)
    assert total is not None
    return total


def gathered(dense: Tensor, indices: Tensor, part: Part) -> Tensor:
    found = dense.reshape(-1).index_select(0, indices)
    return found if part.factor == 1.0 else found * part.factor


def sparse_linear(
    x: Annotated[Tensor, "... in"],
    weight: Annotated[Tensor, "out in"],
    bias: Annotated[Tensor | None, "out"],
    deltas: list[Any],
) -> Annotated[Tensor, "... out"]:
    """F.linear(x, W + Σ scatter(values), b): x (…, in), W (out, in); a delta's indices (k) are flat in its rows of W."""
    parts = tuple(Part(delta.factor, delta.rows) for delta in deltas)
    pairs = [each for delta in deltas for each in (delta.values, delta.indices)]
    return _SparseLinear.apply(  # type: ignore[no-any-return]
        x, weight, bias, *kept_for(x), parts, autocast_dtype(x.device.type), *pairs
    )


class _SparseConv(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, recipe: Recipe | None, kept: tuple[Tensor, ...],
                geometry: tuple[Any, ...], part: Part, dtype: torch.dtype | None, *pair: Tensor) -> Tensor:  # fmt: skip
        x = x if dtype is None else x.to(dtype)
        with torch.autocast(x.device.type, enabled=False):
            new = merged(weight, (part,), pair).to(x.dtype)
            y = convolve(x, new, None if bias is None else bias.to(x.dtype), geometry)
        ctx.geometry, ctx.part = geometry, part
        keep(ctx, x, recipe, kept, dtype, weight, bias, cast_of(new, weight), *pair)
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        kept, (weight, bias, new, values, indices) = kept_of(ctx)
        if is_differentiated():
            dx, dw, db, d_values, _ = gradients(
                lambda x, w, b, *p: convolve(x, merged(w, (ctx.part,), p).to(x.dtype), b, ctx.geometry),
                (whole(ctx.recipe, kept), weight, bias, values, indices), grad, ctx.was_cast,
            )  # fmt: skip
            return dx, dw, db, None, None, None, None, None, d_values, None
        g, x = grad.to(ctx.dtype), whole(ctx.recipe, kept).to(ctx.dtype)
        of_input, of_weight, of_bias = ctx.needs_input_grad[:3]
        if new is None:
            new = merged(weight, (ctx.part,), (values, indices)).to(g.dtype) if of_input else weight
        *place, groups = ctx.geometry
        dx, dw, db = torch.ops.aten.convolution_backward(
            g, x, new, [len(weight)], *place, False, [0] * (x.dim() - 2), groups, (of_input, True, of_bias)
        )
        d_values = gathered(dw, indices, ctx.part).to(values.dtype)
        return dx, dw if of_weight else None, db, None, None, None, None, None, d_values, None


def convolve(x: Tensor, weight: Tensor, bias: Tensor | None, geometry: tuple[Any, ...]) -> Tensor:
    *place, groups = geometry
    return torch.ops.aten.convolution(x, weight, bias, *place, False, [0] * (x.dim() - 2), groups)  # type: ignore[no-any-return]


def sparse_conv(module: nn.Conv2d, x: Tensor, weight: Tensor, bias: Tensor | None, delta: Any) -> Tensor | None:
    """The convolution of `module` with W + scatter(values); None where it is not a zero-padded one, which others run."""
    if module.padding_mode != "zeros" or isinstance(module.padding, str):
        return None
    geometry = (module.stride, module.padding, module.dilation, module.groups)
    return _SparseConv.apply(  # type: ignore[no-any-return]
        x, weight, bias, *kept_for(x), geometry, Part(delta.factor, None), autocast_dtype(x.device.type),
        delta.values, delta.indices,
    )  # fmt: skip
