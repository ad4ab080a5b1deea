"""A weight as few bits and a low-rank rest: Q + L₁ L₂ found by turns, and how many bits each weight of a model gets."""

from collections.abc import Callable
from typing import Annotated, Any

import torch
from torch import Tensor

from peft_core.kernels.quantised import Packed, dense
from peft_core.parts.starts import principal

Quantiser = Callable[[Tensor], Packed]


def by_turns(weight: Tensor, rank: int, scale: float, quantise: Quantiser, steps: int) -> tuple[Packed, Tensor, Tensor]:
    """LoftQ: Q = quant(W − s·B A), s·B A = SVD_r(W − Q), from B A = 0; Q, A and B after so many turns."""
    change = torch.zeros_like(weight)
    for _ in range(steps):
        packed = quantise(weight - change)
        down, up = principal(weight - dense(packed, torch.float32).to(weight), rank, scale)
        change = scale * up @ down
    return packed, down, up


def from_above(
    weight: Annotated[Tensor, "out in"], rank: int, quantise: Quantiser, most: int,
    importance: Annotated[Tensor | None, "out in"] = None,
) -> tuple[Packed, Tensor, Tensor, float]:  # fmt: skip
    """LQ-LoRA: L₁ L₂ = SVD_r(W − Q), Q = quant(W − L₁ L₂), from Q = 0, for as long as ‖√F ∘ (W − Q − L₁ L₂)‖ falls; Q, L₂
    (r, in), L₁ (out, r) and the square of that norm.

    With an importance F the SVD is that of D₁ (W − Q) D₂, D₁ = √(row means of F), D₂ = √(column means).
    """
    rows = columns = weight.new_ones(1, 1)
    if importance is not None:
        importance = importance + importance.mean() * 1e-6  # a row that no sample reads is no row to divide by
        rows, columns = importance.mean(1, keepdim=True).sqrt(), importance.mean(0, keepdim=True).sqrt()
    values, best = torch.zeros_like(weight), None
    for _ in range(most):
        u, s, v = _leading(rows * (weight - values) * columns, rank)
        up, down = u * s.sqrt() / rows, s.sqrt()[:, None] * v / columns
        packed = quantise(weight - up @ down)
        values = dense(packed, weight.dtype)
        rest = (weight - values - up @ down).square()
        error = float((rest if importance is None else rest * importance).sum())
        if best is not None and not error < best[3]:
            break
        best = packed, down, up, error
    assert best is not None
    return best


def _leading(weight: Tensor, rank: int) -> tuple[Tensor, Tensor, Tensor]:
    """The first r of U, S and Vᵀ, by the randomised SVD of the authors (ten more columns, two rounds) drawn from a seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        u, s, v = torch.svd_lowrank(weight, min(rank + 10, *weight.shape))
    return u[:, :rank], s[:rank], v[:, :rank].t()


def cheapest(
    errors: Annotated[Tensor, "weights forms"], sizes: Annotated[Tensor, "weights forms"], most: float
) -> list[int]:
    """A form for each weight, with the least sum of errors whose sizes sum up to `most` or less: an integer programme. What a
    weight cannot have is infinite."""
    import numpy
    from scipy.optimize import Bounds, LinearConstraint, milp

    there = errors.isfinite()
    most_of_each: Any = there.double().flatten().numpy()
    costs, sizes = errors.where(there, 0.0), sizes.where(there, 0.0)
    one = numpy.kron(numpy.eye(len(errors)), numpy.ones(errors.shape[1]))
    found = milp(
        (costs / costs.max().clamp(min=1e-300)).double().flatten().numpy(),
        constraints=[LinearConstraint((sizes / most).double().view(1, -1).numpy(), 0, 1), LinearConstraint(one, 1, 1)],
        bounds=Bounds(0, most_of_each),
        integrality=1,
        options={"mip_rel_gap": 1e-6},
    )
    return found.x.reshape(errors.shape).argmax(1).tolist()  # type: ignore[no-any-return]
