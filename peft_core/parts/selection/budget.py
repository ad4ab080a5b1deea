"""How many entries of a model's weights train, exactly, and which: the largest by some score."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, NamedTuple

import torch
from torch import Tensor

from peft_core.anatomies import Place
from peft_core.errors import PeftError
from peft_core.grafts.graft import Delta
from peft_core.method import Method, Plan
from peft_core.values import Count, Range


@dataclass(frozen=True, kw_only=True)
class Budgeted(Method):
    """A sparse change of as many entries as a budget over all chosen weights allows.

    Args:
        share: of the entries of all chosen weights (and biases, where they count); rounded to a whole number.
        entries: that number itself, in place of a share.
        targets: roles or groups; every weight that has a role, norms and patch embedding included, where None.
    """

    share: Annotated[float, Range(above=0, most=1)] = 0.005
    entries: Count | None = None
    targets: Sequence[str] | None = None

    def budget(self, sizes: Sequence[int]) -> int:
        """The exact number of entries of tensors of these sizes."""
        total = sum(sizes)
        if self.entries is not None and self.entries > total:
            raise PeftError(f"{self.name} got {self.entries:,} entries, above the {total:,} that it may change here.")
        return max(1, int(self.share * total + 0.5)) if self.entries is None else self.entries


def once(plan: Plan, targets: Sequence[str] | None, change: type[Delta], without: Sequence[str] = ()) -> list[Place]:
    """The places of these roles, or of all but `without` that changes of a class accept, none of them within another one."""
    if targets is None:
        every = plan.places(sorted(plan.anatomy.roles() - set(without)))
        found = [
            p for p, _ in every if change.accepts(plan.model.get_submodule(p.module), plan.stock(p), p.rows) is None
        ]
    else:
        found = [place for place, _ in plan.places(targets, change=change)]
    if not found:
        raise PeftError(f"{plan.method.name} finds no weight here that a few entries can be chosen of.")
    whole = {(place.module, place.weight) for place in found if place.rows is None}
    kept: dict[tuple[str, str, tuple[int, int] | None], Place] = {}
    for place in found:
        if place.rows is None or (place.module, place.weight) not in whole:
            kept.setdefault((place.module, place.weight, place.rows), place)
    return list(kept.values())


def allot(budget: int, sizes: Sequence[int]) -> list[int]:
    """The budget in shares as the sizes are, whole numbers that sum to it."""
    total = max(1, sum(sizes))
    exact = [budget * size for size in sizes]
    found = [number // total for number in exact]
    by_rest = sorted(range(len(sizes)), key=lambda n: -(exact[n] % total))
    for n in by_rest[: budget - sum(found)]:
        found[n] += 1
    return found


def largest(scores: Sequence[Tensor], count: int) -> list[Tensor]:
    """Flat indices of the `count` largest scores over all tensors, exactly as many, one tensor of them a tensor of scores."""
    flat = torch.cat([each.reshape(-1) for each in scores])
    found = flat.topk(count, sorted=False).indices.sort().values
    ends = torch.tensor([each.numel() for each in scores], device=flat.device).cumsum(0)
    parts = found.tensor_split(torch.searchsorted(found, ends[:-1]).cpu())
    return [part - end for part, end in zip(parts, [0, *ends[:-1].tolist()], strict=True)]


class Cost(NamedTuple):
    """A tensor of `size` entries, which is changed as a whole by `whole` parameters once `least` of its entries are chosen."""

    size: int
    whole: int
    least: int


def largest_within(scores: Sequence[Tensor], costs: Sequence[Cost], budget: int) -> list[Tensor | None]:
    """As many of the largest scores as a budget of parameters allows, where a tensor is changed as a whole once enough of its
    entries are among them; None for these, for the others flat indices, the next largest among them to spend it all.

    The costs' sum must not lie below the budget.
    """
    flat = torch.cat([each.reshape(-1) for each in scores])
    sizes, whole, least = (torch.tensor(each, device=flat.device) for each in zip(*costs, strict=True))
    ends, count = sizes.cumsum(0), min(4 * budget, flat.numel())
    while True:
        order = flat.topk(count).indices
        owner = torch.searchsorted(ends, order, right=True)
        by_owner, held = owner.argsort(stable=True), owner.bincount(minlength=len(sizes))
        nth = torch.empty_like(owner)  # how many of its tensor's there are up to this one
        starts = (held.cumsum(0) - held)[owner[by_owner]]
        nth[by_owner] = torch.arange(1, count + 1, device=flat.device) - starts
        needed, price = least[owner], whole[owner]
        spent = ((nth < needed) + (nth == needed) * (price - needed + 1)).cumsum(0)
        taken = int((spent <= budget).sum())
        is_whole = owner[:taken].bincount(minlength=len(sizes)) >= least
        rest = budget - (int(spent[taken - 1]) if taken else 0)
        more = order[taken:][~is_whole[owner[taken:]]][:rest]
        if len(more) == rest or count == flat.numel():
            break
        count = min(2 * count, flat.numel())
    found = torch.cat((order[:taken], more)).sort().values
    parts = found.tensor_split(torch.searchsorted(found, ends[:-1]).cpu())
    return [
        None if entire else part - (end - size)
        for part, entire, end, size in zip(parts, is_whole.tolist(), ends.tolist(), sizes.tolist(), strict=True)
    ]


def largest_a_row(score: Tensor, count: int) -> Tensor:
    """Flat indices of the `count` largest scores of each row."""
    rows = score.reshape(len(score), -1)
    found = rows.topk(count, dim=1, sorted=False).indices
    return (found + torch.arange(len(rows), device=score.device)[:, None] * rows.shape[1]).flatten()


def entries_of(plan: Plan, places: Sequence[Place]) -> Iterator[int]:
    """How many entries each place's weight has."""
    for place in places:
        out, inner = plan.shape(place)
        yield out * inner
