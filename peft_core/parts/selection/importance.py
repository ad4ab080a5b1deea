"""Which entries of the stock weights matter to the loss: their gradients, and what training them a little changes."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from peft_core.anatomies import Place
from peft_core.attach import grafts_named
from peft_core.grafts.graft import Graft
from peft_core.lifecycle import adaptation_of
from peft_core.merging import names_of
from peft_core.method import Method, Plan
from peft_core.parts.selection.budget import Budgeted, allot, largest, once
from peft_core.parts.selection.first_phase import trained_once
from peft_core.parts.sparse import ChosenByValue, Sparse


class Site(NamedTuple):
    """A sparse change, and the stock parameters that it stands on; the bias where entries of it may be chosen."""

    graft: Sparse
    weight: nn.Parameter
    bias: nn.Parameter | None

    def parts(self, of: Callable[[nn.Parameter], Tensor | None] = lambda parameter: parameter) -> Iterator[Tensor]:
        """What `of` gives for the weight and then for the bias, the rows of this change alone."""
        for parameter in (self.weight, self.bias):
            if parameter is not None:
                found = of(parameter)
                found = torch.zeros_like(parameter) if found is None else found
                yield found if self.graft.rows is None else found[slice(*self.graft.rows)]


def sites_of(model: nn.Module, method: Method) -> list[Site]:
    found = []
    for module, _, graft in grafts_named(model, adaptation_of(model, method).name):
        if isinstance(graft, Sparse):
            weight, bias = (module._parameters.get(name) for name in names_of(module))
            assert weight is not None
            found.append(Site(graft, weight, None if graft.bias_indices is None else bias))
    return found


@contextmanager
def stock_trains(model: nn.Module, method: Method, as_changed: bool = False) -> Iterator[list[Site]]:
    """Within the block the method's sparse changes are off, unless `as_changed`, and the stock parameters that they stand on take
    gradients."""
    sites = sites_of(model, method)
    parameters = {id(p): p for site in sites for p in (site.weight, site.bias) if p is not None}
    before = [(parameter, parameter.requires_grad) for parameter in parameters.values()]
    try:
        for site in sites:
            site.graft.enabled = as_changed
        for parameter, _ in before:
            parameter.requires_grad_(True)
        yield sites
    finally:
        for parameter, required in before:
            parameter.requires_grad_(required)
            parameter.grad = None
        for site in sites:
            site.graft.enabled = True


def gradient_scores(
    model: nn.Module,
    method: Method,
    losses: Iterable[Tensor],
    each: Callable[[Tensor], Tensor],
    limit: int | None = None,
    as_changed: bool = False,
) -> list[list[Tensor]]:
    """Σ each(∂L/∂W) over the losses, up to `limit` of them, for every site's weight and then its bias; with `as_changed` where
    the method's changes have taken the weights."""
    totals: list[list[Tensor]] = []
    with stock_trains(model, method, as_changed) as sites:
        for loss in islice(losses, limit):
            loss.backward()
            with torch.no_grad():
                found = [[each(part).float() for part in site.parts(lambda p: p.grad)] for site in sites]
                if not totals:
                    totals = [[part.clone() for part in parts] for parts in found]
                else:
                    for total, parts in zip(totals, found, strict=True):
                        for sum_, part in zip(total, parts, strict=True):
                            sum_ += part
            model.zero_grad(set_to_none=True)
    return totals


def squared_gradients(off: Sequence[Graft], tensors: Sequence[Tensor], losses: Iterable[Tensor]) -> dict[int, Tensor]:
    """Σ (∂L/∂W)² over losses of single samples, of the model without these grafts, by the tensors' ids."""
    scores = {id(tensor): torch.zeros_like(tensor) for tensor in tensors}
    required = [tensor.requires_grad for tensor in tensors]
    try:
        for graft in off:
            graft.enabled = False
        for tensor in tensors:
            tensor.requires_grad_(True)
        for loss in losses:
            found = torch.autograd.grad(loss, tensors, allow_unused=True)
            for tensor, gradient in zip(tensors, found, strict=True):
                if gradient is not None:
                    scores[id(tensor)] += gradient.square()
    finally:
        for graft in off:
            graft.enabled = True
        for tensor, before in zip(tensors, required, strict=True):
            tensor.requires_grad_(before)
    return scores


def moved_by_training(
    model: nn.Module, method: Method, losses: Iterable[Tensor], lr: float, passes: int = 1, steps: int | None = None
) -> list[list[Tensor]]:
    """|θ1 − θ0| of every site's weight and then its bias, where AdamW trains them, and all that trains, in passes over the
    losses, up to `steps` steps; everything is as before afterwards."""
    with stock_trains(model, method) as sites, trained_once(model, method, losses, lr, passes, steps) as before:
        moved = {id(p): (p.detach() - start).abs().float() for p, start in before}
        return [list(site.parts(lambda p: moved[id(p)])) for site in sites]


@dataclass(frozen=True, kw_only=True)
class Scored(Budgeted):
    """A budget over all chosen weights, whose entries `prepare` chooses by a score.

    Args:
        biases: whether entries of the biases may be chosen too, and count.
    """

    biases: bool = True
    change: ClassVar[type[ChosenByValue]] = ChosenByValue
    in_blocks: ClassVar[bool] = False
    """Without targets, blocks' weights alone take part."""
    left_out: ClassVar[tuple[str, ...]] = ()
    """Without targets, roles that take no part; of fused projections those of the whole, where each is to stand for itself."""

    def places(self, plan: Plan) -> list[Place]:
        """Where entries may be chosen."""
        found = once(plan, self.targets, self.change, self.left_out)
        return [place for place in found if place.block is not None or self.targets is not None or not self.in_blocks]

    def install(self, plan: Plan) -> None:
        places = self.places(plan)
        biased = [self.biases and has_bias(plan, place) for place in places]
        sizes: list[int] = []
        for place, with_bias in zip(places, biased, strict=True):
            out, inner = plan.shape(place)
            sizes += [out * inner, out] if with_bias else [out * inner]
        # until `prepare` knows better the budget lies as the sizes do, so that it is counted right
        shares = iter(allot(self.budget(sizes), sizes))
        for place, with_bias in zip(places, biased, strict=True):
            entries, of_bias = next(shares), next(shares) if with_bias else None
            change = self.change(plan.stock(place), place.rows, plan.shape(place), entries, of_bias)
            plan.change_weight(place, change)

    def choose(self, model: nn.Module, scores: Sequence[Sequence[Tensor]]) -> None:
        """The entries of the largest scores over all sites."""
        flat = [part for parts in scores for part in parts]
        chosen = iter(largest(flat, self.budget([part.numel() for part in flat])))
        for site, parts in zip(sites_of(model, self), scores, strict=True):
            site.graft.choose(*(next(chosen) for _ in parts))


def has_bias(plan: Plan, place: Place) -> bool:
    return place.bias is not None and plan.model.get_submodule(place.module)._parameters.get(place.bias) is not None
