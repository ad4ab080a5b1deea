"""Changes of which a search keeps some under a budget: gates that weigh them, their probabilities, and the pick."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor

from peft_core.grafts.graft import Graft

CLOSEST = 1e-7
"""Probabilities keep this distance from 0 and 1."""


class Structure(Graft):
    """Mixed in before a change: parts of its own, each weighed by a gate while a search runs, and kept or gone after it.

    A part that is gone has parameters of size 0 (of the dimension along which they vanish), so a file tells what was kept.
    """

    parts: ClassVar[dict[str, tuple[str, ...]]] = {}
    """Part -> its parameters: (r, in) and (out, r) of a low-rank change, vectors of others."""
    settled: bool = False

    def sizes(self) -> dict[str, int]:
        """The parts that there are, with their number of parameters."""
        found = {part: sum(getattr(self, name).numel() for name in names) for part, names in self.parts.items()}
        return {part: size for part, size in found.items() if size}

    def gate(self, part: str) -> Any:
        return self.__dict__.get("gates", {}).get(part, 1.0)

    def shifted(self, value: Tensor | None, by: Tensor, part: str) -> Tensor | None:
        """value + z · by."""
        if value is None or not len(by):
            return value
        gate = self.gate(part)
        return (value + (by if isinstance(gate, float) else by * gate)).to(value.dtype)

    @torch.no_grad()
    def keep(self, parts: Iterable[str]) -> None:
        """What is not named is gone; the parameters keep their identity."""
        for part in self.parts.keys() - set(parts):
            for name in self.parts[part]:
                p = getattr(self, name)
                p.data = p.data[:, :0] if p.dim() == 2 and name != self.parts[part][0] else p.data[:0]
        self.settled = True

    def fit(self, tensors: Mapping[str, Tensor]) -> None:
        if not all(name in tensors for names in self.parts.values() for name in names):
            return
        self.keep(part for part, names in self.parts.items() if tensors[names[0]].numel())


def open_gates(changes: Sequence[Structure], z: Tensor | None = None) -> list[int]:
    """Gives every part its gate of z, one after another; without z takes all gates off. Gives the parts' sizes."""
    sizes = [size for change in changes for size in change.sizes().values()]
    gates = iter([] if z is None else z.unbind())
    for change in changes:
        change.__dict__["gates"] = {} if z is None else {part: next(gates) for part in change.sizes()}
    return sizes


def probabilities(
    alphas: Annotated[Tensor, "n"], sizes: Annotated[Tensor, "n"], budget: int, beta: float
) -> Annotated[Tensor, "n"]:
    """p = σ((α − ζ)/β) with Σ p n = budget; the gradient sees ζ only as far as Σ p stays what it is."""
    p = torch.sigmoid((alphas - shift(alphas, sizes, budget, beta)) / beta).clamp(CLOSEST, 1 - CLOSEST)
    return p / p.sum() * p.sum().detach()


@torch.no_grad()
def shift(alphas: Tensor, sizes: Tensor, budget: int, beta: float) -> float:
    """ζ, by halving the interval in which it lies."""
    a, n = alphas.double() / beta, sizes.double()
    low, high = a.min() - 40, a.max() + 40
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if (torch.sigmoid(a - middle) * n).sum() > budget else (low, middle)
    return float(high * beta)


def pick(p: Tensor, sizes: Sequence[int], budget: int) -> list[bool]:
    """By falling p (of equal ones the first) every structure that still fits."""
    taken, left = [False] * len(sizes), budget
    for index in torch.sort(p, descending=True, stable=True).indices.tolist():
        if sizes[index] <= left:
            taken[index], left = True, left - sizes[index]
    return taken
