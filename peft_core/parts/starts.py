"""Starts of a low-rank change other than A random, B zero: from the weight, from chance, from inputs, from gradients.

Where B A is not zero at the start, the change is s·(B A − B₀ A₀): the stock weight stays as it is in place of becoming the
residual W − s·B₀ A₀ that authors train on, and what is saved loads on the stock model.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from peft_core.attach import grafts_named
from peft_core.errors import PeftError
from peft_core.grafts.graft import is_plain
from peft_core.lifecycle import adaptation_of
from peft_core.merging import names_of
from peft_core.method import Method
from peft_core.parts.lowrank import LowRank

Pair = tuple[Tensor, Tensor]
"""A (r, in) and B (out, r)."""


def moved(down: Tensor, up: Tensor, down_before: Tensor, up_before: Tensor) -> Pair:
    """Factors of B A − B₀ A₀, of rank 2r, both of whose products are zero to the last bit where nothing has moved."""
    return torch.cat((down, down - down_before)), torch.cat((up - up_before, up_before), 1)


class Anchored(LowRank):
    """W' = W + s·(B A − B₀ A₀), A₀ and B₀ where A and B started: W' = W to the last bit at step 0.

    It runs as a change of rank 2r, with factors (A; A − A₀) and (B − B₀, B₀), both of whose products are zero at the start.
    """

    def __init__(self, weight: Tensor, rows: tuple[int, int] | None, rank: int, scale: float, dropout: float = 0.0):
        super().__init__(weight, rows, rank, scale, dropout)
        nn.init.zeros_(self.A)
        self.register_buffer("A0", self.A.detach().clone())
        self.register_buffer("B0", self.B.detach().clone())

    @torch.no_grad()
    def start(self, down: Tensor, up: Tensor) -> None:
        buffers: Any = self
        for tensors, value in (((self.A, buffers.A0), down), ((self.B, buffers.B0), up)):
            for tensor in tensors:
                tensor.copy_(value)

    def factors(self) -> Pair:
        start: Any = self
        return moved(self.A, self.B, start.A0, start.B0)


class FrozenUp(LowRank):
    """W' = W + s·B A with a frozen B; A (r, in) is zero: W' = W at step 0."""

    def __init__(self, weight: Tensor, rows: tuple[int, int] | None, rank: int, scale: float, dropout: float = 0.0):
        super().__init__(weight, rows, rank, scale, dropout)
        up = self.B.detach()
        del self.B
        self.register_buffer("B", up)
        nn.init.zeros_(self.A)

    def start(self, up: Tensor) -> None:
        buffer: Any = self.B
        buffer.copy_(up)


class FromInputs(LowRank):
    """W' = W + s·B A whose A is zero, too, until it is set from data."""

    def __init__(self, weight: Tensor, rows: tuple[int, int] | None, rank: int, scale: float, dropout: float = 0.0):
        super().__init__(weight, rows, rank, scale, dropout)
        nn.init.zeros_(self.A)


# ---- from the weight, and from chance ------------------------------------------------------------------------------


def principal(weight: Tensor, rank: int, scale: float) -> Pair:
    """The largest singular triplets: s·B A = U_r S_r V_rᵀ, with √(S_r/s) on either side."""
    u, values, v = torch.linalg.svd(weight, full_matrices=False)
    root = (values[:rank] / scale).sqrt()
    return root[:, None] * v[:rank], u[:, :rank] * root


def orthonormal(weight: Tensor, rank: int, scale: float) -> Pair:
    """The first columns of Q and rows of R, W = Q R."""
    q, r = torch.linalg.qr(weight)
    return r[:rank], q[:, :rank]


def disjoint(weight: Tensor, rank: int, scale: float) -> Pair:
    """Random factors in two halves of a rotated rank space: B A = 0."""
    if rank % 2:
        raise PeftError(f"the orthogonal start splits the rank in two halves: {rank} is odd.")
    options: Any = dict(device=weight.device, dtype=weight.dtype)
    q, _ = torch.linalg.qr(torch.randn(rank, rank, **options))
    down = torch.randn(weight.shape[1], rank // 2, **options) @ q[0::2]
    up = torch.randn(rank // 2, weight.shape[0], **options).t() @ q[1::2]
    return down.t() / 10, up / 10


def minor(weight: Tensor, rank: int) -> Tensor:
    """B: the left singular vectors of the smallest singular values."""
    return torch.linalg.svd(weight, full_matrices=False)[0][:, -rank:]


# ---- from gradients ------------------------------------------------------------------------------------------------


def with_gradients(model: nn.Module, method: Method, losses: Iterable[Tensor]) -> list[tuple[Any, Tensor]]:
    """The method's low-rank changes, each with ∂L/∂W of the stock weight that it changes (rows `change.rows` of it), the
    mean over the losses; for `prepare`."""
    changes = [(graft, module) for module, _, graft in grafts_named(model, adaptation_of(model, method).name)]
    pairs = [(c, m._parameters[names_of(m)[0]]) for c, m in changes if isinstance(c, LowRank)]
    distinct: list[Any] = list({id(weight): weight for _, weight in pairs}.values())
    if not all(is_plain(weight) for weight in distinct):
        raise PeftError(
            "a start from gradients needs those of the weights, and these are quantised: choose another start."
        )
    needed, count = [weight.requires_grad for weight in distinct], 0
    sums = {id(w): torch.zeros_like(w, dtype=torch.promote_types(w.dtype, torch.float32)) for w in distinct}
    try:
        for weight in distinct:
            weight.requires_grad_(True)
        for loss in losses:
            count += 1
            for weight, gradient in zip(distinct, torch.autograd.grad(loss, distinct, allow_unused=True), strict=True):
                if gradient is not None:
                    sums[id(weight)] += gradient
    finally:
        for weight, before in zip(distinct, needed, strict=True):
            weight.requires_grad_(before)
    return [(change, sums[id(weight)] / count) for change, weight in pairs]


def along_gradient(gradient: Tensor, rank: int, gamma: float) -> Pair:
    """A: the first r right singular vectors of ∂L/∂W, B: the next r left ones, weighed by their values and out^¼/√γ."""
    most = min(4 * rank, *gradient.shape)
    u, values, v = torch.svd_lowrank(gradient, q=most, niter=4)
    if most < 2 * rank:
        raise PeftError(
            f"the start from gradients takes 2 · {rank} directions, and a weight has {most}: lower the rank."
        )
    up = u[:, rank : 2 * rank] * values[rank : 2 * rank]
    return v[:, :rank].t(), up * (len(gradient) ** 0.25 / gamma**0.5)


# ---- from inputs ---------------------------------------------------------------------------------------------------


class Components:
    """The first principal components of rows that come batch by batch, as incremental PCA has them."""

    def __init__(self, count: int):
        self.count, self.seen = count, 0
        self.mean: Any = None
        self.vectors: Any = None  # (count, in)
        self.values: Any = None
        self.settled = False

    def add(self, rows: Tensor, threshold: float) -> None:
        """Takes further rows (N, in); settled when no component turns by more than arccos of the threshold."""
        count, mean = len(rows), rows.mean(0)
        if count < self.count:
            return
        before, stack = self.vectors, rows - mean
        if before is not None:
            shift = (self.seen / (self.seen + count) * count) ** 0.5 * (self.mean - mean)
            stack = torch.cat((self.values[:, None] * before, stack, shift[None]))
            mean = (self.mean * self.seen + mean * count) / (self.seen + count)
        _, values, v = torch.linalg.svd(stack, full_matrices=False)
        largest = v.gather(1, v.abs().argmax(1, keepdim=True))
        self.vectors, self.values = (v * largest.sign())[: self.count], values[: self.count]
        self.mean, self.seen = mean, self.seen + count
        if before is not None:
            alike = torch.cosine_similarity(self.vectors, before)
            self.settled = bool((alike >= threshold).all())


def components_of(changes: list[LowRank], watch: Callable[..., Any], losses: Iterator[Any], threshold: float) -> None:
    """Sets each A to the components of what its layer reads, of as many batches as it takes until all have settled.

    Args:
        watch: a context in which a call (change, rows, output) is made with all that layers read and give.
    """
    found = {id(change): Components(len(change.A)) for change in changes}

    def see(change: Any, rows: Tensor, y: Tensor) -> None:
        components = found.get(id(change))
        if components is not None and not components.settled:
            with torch.no_grad():
                components.add(rows.detach().reshape(-1, rows.shape[-1]).to(change.A.dtype), threshold)

    with watch(see):
        for _ in losses:
            if all(components.settled for components in found.values()):
                break
    with torch.no_grad():
        for change in changes:
            vectors = found[id(change)].vectors
            if vectors is None:
                raise PeftError("the start from inputs got no batch with as many rows as the rank: give it more data.")
            change.A.copy_(vectors)
