"""Heads of attentions and channels of MLPs that training drops one after another, while low-rank changes make up for them."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from peft_core.anatomies import Place, SubLayer
from peft_core.attach import grafts_named
from peft_core.errors import PeftError
from peft_core.grafts.graft import Delta
from peft_core.lifecycle import Progress, adaptation_of, memory, own_grafts
from peft_core.merging import names_of
from peft_core.method import Method, Plan
from peft_core.parts.lowrank import LowRank
from peft_core.values import Count, Rate, Widths

ROLES = {"attn": ("q", "k", "v", "proj"), "mlp": ("fc1", "fc1", "fc1", "fc2")}


class Dropped(Delta):
    """W' = m W and b' = m b, m being 0 for the rows of dropped groups and 1 for all others: what a called layer gives is
    masked instead, behind the other changes there.

    Args:
        groups: how many there are: heads, or channels.
        size: consecutive rows a group.
        times: how often the groups come again (2 where a layer gives channels and their gates).
    """

    maps_output = True

    def __init__(self, weight: Tensor, place: Place, groups: int, size: int, times: int) -> None:
        super().__init__(place.rows)
        self.size, self.times, self.called = size, times, place.called
        self.register_buffer("gone", torch.zeros(groups, dtype=torch.bool, device=weight.device))
        self.gone: Tensor

    @property
    def reads_input(self) -> bool:  # type: ignore[override]
        return self.called

    def rows_gone(self) -> Tensor:
        return self.gone.repeat_interleave(self.size).repeat(self.times)

    def forward(self, weight: Tensor) -> Tensor:
        return weight.masked_fill(self.rows_gone().view(-1, *[1] * (weight.dim() - 1)), 0.0)

    def bias(self, bias: Tensor | None) -> Tensor | None:
        return None if bias is None else bias.masked_fill(self.rows_gone(), 0.0)

    def on_output(self, y: Tensor) -> Tensor:
        return y.masked_fill(~self.rows_gone(), 0.0) * -self.factor


@dataclass(frozen=True, kw_only=True)
class HeadsAndChannels(Method):
    """Low-rank changes of attention and MLP whose heads and channels go while they train: a share that rises from none, with
    the cube of the time, to `ratio` of each attention's heads and of each MLP's channels.

    Importance of an entry of W' = W + s·B A is |g W'|, g = ∂B A + B ∂A − ∂B ∂A with the step's gradients (`lora`) or 1
    (`magnitude`); of a head in one of q, k, v, proj, or a channel in fc1 or fc2, the sum over its entries, divided by the norm of
    these sums over the layer; of the group the sum over its layers, smoothed from step to step (0.9). What has gone stays
    gone.

    Args:
        rank: of the changes, or one a block where 0 means absent.
        ratio: share of heads and channels that go.
        criterion: importance.
        every: steps between two rounds.
        warmup, cooldown: shares of the training before the first round and behind the last one.
        spare_ends: the first tenth of the blocks (rounded down) and the last keep all.
        dropout: on the changes' input.
    """

    rank: Widths = 8
    ratio: Rate = 0.5
    criterion: Literal["lora", "magnitude"] = "lora"
    every: Count = 10
    warmup: Rate = 0.1
    cooldown: Rate = 0.1
    spare_ends: bool = True
    dropout: Rate = 0.0
    leaves_zeros: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.warmup + self.cooldown >= 1:
            raise PeftError(f"{self.name} got a warmup and a cooldown that leave no time between them.")

    def change(self, plan: Plan, place: Place, rank: int) -> LowRank:
        raise NotImplementedError(f"{type(self).__name__} must define change(plan, place, rank)")

    def install(self, plan: Plan) -> None:
        for sublayer, rank, _ in plan.sublayers(("attn", "mlp"), self.rank):
            places = _places(plan, sublayer)
            groups = _groups(plan, sublayer, places)
            depth = plan.depth(sublayer.tower)
            spared = self.spare_ends and (sublayer.block < int(0.1 * depth) or sublayer.block == depth - 1)
            for number, place in enumerate(places):
                change: Any = self.change(plan, place, min(rank, *plan.shape(place)))
                change.group, change.across = sublayer.body, number == len(places) - 1
                plan.change_weight(place, change)
                if not change.across and not spared:
                    each = plan.shape(place)[0] // groups
                    size, times = (each, 1) if sublayer.kind == "attn" else (1, each)
                    dropped: Any = Dropped(plan.stock(place), place, groups, size, times)
                    dropped.group = sublayer.body
                    plan.check(place, dropped)
                    plan.join(place.module, f"{place.role}_dropped", dropped)

    # ---- training --------------------------------------------------------------------------------------------------

    def before_step(self, model: nn.Module) -> None:
        kept: dict[str, Tensor] = memory(model, self).setdefault("importance", {})
        now = self._importance(model)
        if not all(value.isfinite().all() for value in now.values()):
            return
        for name, value in now.items():
            before = kept.get(name)
            kept[name] = 0.1 * value if before is None else before.to(value.device) * 0.9 + value * 0.1

    def _importance(self, model: nn.Module) -> dict[str, Tensor]:
        masks, found = self._masks(model), dict[str, Tensor]()
        for module, _, change in grafts_named(model, adaptation_of(model, self).name):
            group = getattr(change, "group", None)
            if not isinstance(change, LowRank) or group not in masks:
                continue
            first, weight = masks[group][0], module._parameters[names_of(module)[0]]
            assert weight is not None
            score = self._score(change, weight.detach()[slice(*(change.rows or (None,)))])
            if score is None:
                continue
            across: Any = change.across
            # rows of channels and of their gates lie one behind the other
            score = score.sum(0 if across else 1).view(1 if across else first.times, len(first.gone), -1).sum((0, 2))
            score = score / (score.norm() + 1e-8)
            found[group] = score if group not in found else found[group] + score
        return found

    def _score(self, change: LowRank, weight: Tensor) -> Tensor | None:
        down, up = change.factors()
        whole = torch.add(weight.flatten(1), up @ down, alpha=change.scale)
        if self.criterion == "magnitude":
            return whole.abs()
        da, db = change.A.grad, change.B.grad
        return None if da is None or db is None else ((db @ down + up @ da - db @ da) * whole).abs()

    def after_step(self, model: nn.Module, progress: float) -> None:
        if not isinstance(progress, Progress):
            raise PeftError(f"{self.name} needs to know the steps: call after_step(model, Progress(step, steps)).")
        share, before = (self.share(step, progress.steps) for step in (progress.step - 1, max(0, progress.step - 2)))
        if (0 < share < self.ratio and (progress.step - 1) % self.every == 0) or before < share >= self.ratio:
            self._drop(model, share)

    def share(self, step: int, steps: int) -> float:
        """Of heads and channels that are to be gone after so many steps."""
        if step <= self.warmup * steps:
            return 0.0
        if step > steps - self.cooldown * steps:
            return self.ratio
        left = 1 - (step - self.warmup * steps) / (steps - (self.warmup + self.cooldown) * steps)
        return self.ratio - self.ratio * left**3

    def finish(self, model: nn.Module) -> None:
        self._drop(model, self.ratio)

    def _drop(self, model: nn.Module, share: float) -> None:
        """Drops this share, the least important ones, where fewer have gone than are to go at the end."""
        importance: Mapping[str, Tensor] = memory(model, self).get("importance", {})
        for group, masks in self._masks(model).items():
            score, first = importance.get(group), masks[0]
            if score is None or int(first.gone.sum()) >= int(len(first.gone) * self.ratio):
                continue
            score = score.to(first.gone.device) * ~first.gone
            gone = score.argsort(stable=True)[: int(len(score) * share)]
            for mask in masks:
                mask.gone.zero_()
                mask.gone[gone] = True

    def _masks(self, model: nn.Module) -> dict[str, list[Any]]:
        found = dict[str, list[Any]]()
        for mask in own_grafts(model, self, Dropped):
            found.setdefault(mask.group, []).append(mask)
        return found


def _places(plan: Plan, sublayer: SubLayer) -> list[Place]:
    """What gives the groups, and last what takes them in."""
    roles = ROLES[sublayer.kind]
    here = [
        p for p in plan.anatomy.places if (p.block, p.tower) == (sublayer.block, sublayer.tower) and p.role in roles
    ]
    within = [p for p in here if f"{p.module}.".startswith(f"{sublayer.body}.")]
    here = within if any(p.role == roles[-1] for p in within) else here
    whole = [p for role in dict.fromkeys(roles) for p in here if p.role == role]
    counts = [sum(p.role == role for p in whole) for role in dict.fromkeys(roles)]
    if counts[-1] != 1 or not all(counts) or (sublayer.kind == "attn" and len(whole) > 4):
        raise PeftError(
            f"{plan.method.name} drops heads of an attention of its own and channels of an MLP of two layers, and "
            f"{sublayer.body} is another."
        )
    return whole


def _groups(plan: Plan, sublayer: SubLayer, places: Iterable[Place]) -> int:
    """How many go one by one: heads with the keys and values that they share, or channels."""
    *gives, takes = (plan.shape(place) for place in places)
    if sublayer.kind == "attn":
        return min(rows for rows, _ in gives) // plan.head_width(sublayer)
    return takes[1]
