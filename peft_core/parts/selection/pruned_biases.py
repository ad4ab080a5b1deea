"""Biases that train all, and are pruned to a budget while they do (what the two NAS variants of BitFit share)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor, nn

from peft_core.errors import PeftError
from peft_core.lifecycle import memory
from peft_core.method import Method, Plan
from peft_core.parts.selection.importance import has_bias, sites_of
from peft_core.parts.sparse import Sparse
from peft_core.values import Count, Range


class OfBiases(Sparse):
    """No entry of the weight; every entry of the bias, until it is pruned."""

    additive = False

    @classmethod
    def accepts(cls, module: nn.Module, weight: Tensor, rows: tuple[int, int] | None) -> str | None:
        return None if not isinstance(module, nn.Embedding) else super().accepts(module, weight, rows)


@dataclass(frozen=True, kw_only=True)
class PrunedBiases(Method):
    """Every bias trains, b' = b + values from 0; at `rounds` moments, evenly over the share `pruned_until` of the training, those
    that matter least go back to what they were, until the budget stays.

    A bias matters as much as the loss would rise, to first order, were it put back: |Σ g · values| over the steps since the
    last round.

    Args:
        share: of all biases' entries; rounded to a whole number.
        rounds: how often is pruned.
        pruned_until: share of the training after which the budget is reached.
        targets: roles or groups; every role where None.
    """

    share: Annotated[float, Range(above=0, most=1)] = 0.5
    rounds: Count = 4
    pruned_until: Annotated[float, Range(above=0, most=1)] = 0.5
    targets: Sequence[str] | None = None
    whole: ClassVar[bool] = False
    """Whole vectors stay or go."""

    def install(self, plan: Plan) -> None:
        roles = sorted(plan.anatomy.roles()) if self.targets is None else self.targets
        seen: set[tuple[str, Any]] = set()
        places = [place for place, _ in plan.places(roles) if has_bias(plan, place)]
        entire = {place.module for place in places if place.rows is None}
        for place in places:
            if (place.module, place.rows) in seen or (place.rows is not None and place.module in entire):
                continue
            seen.add((place.module, place.rows))
            shape = plan.shape(place)
            empty = torch.empty(0, dtype=torch.int32)
            change = OfBiases(plan.stock(place), place.rows, shape, empty, torch.arange(shape[0]))
            plan.change_weight(place, change)
        if not seen:
            raise PeftError(f"{self.name} finds no bias here.")

    def _vectors(self, model: nn.Module) -> list[nn.Parameter]:
        return [site.graft.bias_values for site in sites_of(model, self)]  # type: ignore[misc]

    def after_step(self, model: nn.Module, progress: float) -> None:
        kept, vectors = memory(model, self), self._vectors(model)
        if not kept:
            kept |= {"round": 0, "scores": [torch.zeros_like(v) for v in vectors]}
            kept["alive"] = [torch.ones_like(v, dtype=torch.bool) for v in vectors]
        for n, vector in enumerate(vectors):
            alive = kept["alive"][n] = kept["alive"][n].to(vector.device)
            vector.mul_(alive)  # the optimiser's older moments still push what was pruned
            if vector.grad is not None:
                kept["scores"][n] = kept["scores"][n].to(vector.device) + vector.grad * vector
        due = min(self.rounds, int(progress / self.pruned_until * self.rounds + 1e-9))
        if due > kept["round"]:
            kept["round"] = due
            self._prune(vectors, kept)

    def _prune(self, vectors: Sequence[nn.Parameter], kept: dict[str, Any]) -> None:
        total = sum(len(vector) for vector in vectors)
        room = total - int((total - self.share * total) * kept["round"] / self.rounds + 0.5)
        scores = [
            torch.where(alive, score.abs(), -1.0) for alive, score in zip(kept["alive"], kept["scores"], strict=True)
        ]
        if self.whole:
            order = sorted(range(len(scores)), key=lambda n: -scores[n].mean().item())
            for n in order:
                room -= len(scores[n])
                kept["alive"][n].fill_(room >= 0 and bool(kept["alive"][n].all()))
        else:
            order = torch.cat(scores).argsort(descending=True, stable=True)[room:]
            alive = torch.cat(kept["alive"]).index_fill(0, order, False)
            kept["alive"] = list(alive.split([len(vector) for vector in vectors]))
        for n, vector in enumerate(vectors):
            vector.mul_(kept["alive"][n])
            kept["scores"][n] = torch.zeros_like(vector)

    def finish(self, model: nn.Module) -> None:
        kept = memory(model, self)
        for n, site in enumerate(sites_of(model, self) if kept else ()):
            alive = kept["alive"][n].nonzero().flatten()
            values = site.graft.bias_values
            assert isinstance(values, nn.Parameter)
            site.graft.choose(of_bias=alive, bias_values=values.detach()[alive])
