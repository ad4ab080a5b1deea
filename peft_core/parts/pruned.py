"""Low-rank changes whose ranks training chooses place by place: what is left at the end is cut out and remembered."""

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn

from peft_core.anatomies import Place
from peft_core.attach import grafts_named
from peft_core.errors import PeftError
from peft_core.grafts.graft import Delta
from peft_core.lifecycle import adaptation_of
from peft_core.method import Plan
from peft_core.parts.lowrank import LowRank
from peft_core.parts.ranked import Ranked
from peft_core.values import Whole


@dataclass(frozen=True, kw_only=True)
class Pruned(Ranked):
    """A change whose components are cut at the end of training.

    Args:
        ranks: `module.role` -> rank, as training left it; written into the adapter's card. Places that it does not name have
            no change. The scale stays that of `rank`.
    """

    ranks: dict[str, Whole] | None = None

    def chosen(self, plan: Plan, change: type[Delta]) -> Iterator[tuple[Place, int, int]]:
        """Places with the rank that the method began with there and the one that is left."""
        known = set()
        for place, rank in plan.places(self.targets, self.rank, change):
            name = f"{place.module}.{place.role}"
            known.add(name)
            left = rank if self.ranks is None else self.ranks.get(name, 0)
            if not isinstance(left, int) or not 0 <= left <= rank:
                raise PeftError(f"{self.name} got the rank {left} for {name}: it must be 0 to {rank}.")
            if left:
                yield place, rank, left
        if unknown := sorted(set(self.ranks or ()) - known):
            raise PeftError(f"{self.name} has ranks for {unknown[0]}, which is no place of this model.")

    def as_trained(self, model: nn.Module) -> Self:
        grafts = list(grafts_named(model, adaptation_of(model, self).name))
        changes = [(module, slot, graft) for module, slot, graft in grafts if isinstance(graft, LowRank)]
        if self.ranks is None and not any(getattr(graft, "was_cut", False) for *_, graft in changes):
            return self
        paths = {id(module): path for path, module in model.named_modules()}
        return dataclasses.replace(self, ranks={f"{paths[id(m)]}.{slot}": len(graft.A) for m, slot, graft in changes})


@torch.no_grad()
def cut(change: Any, keep: Tensor, *gates: str) -> None:
    """Keeps these components of a low-rank change alone (the first one where none is left): rows of A, columns of B, and
    entries of its `gates`."""
    index = keep.nonzero().flatten() if keep.any() else keep.new_zeros(1, dtype=torch.long)
    if len(index) == len(keep):
        return
    change.A, change.B = nn.Parameter(change.A[index]), nn.Parameter(change.B[:, index])
    for gate in gates:
        setattr(change, gate, nn.Parameter(getattr(change, gate)[index]))
    change.was_cut = True
