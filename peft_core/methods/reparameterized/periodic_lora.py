import dataclasses
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from peft_core import lifecycle
from peft_core.method import Method, Plan
from peft_core.parts.chance import chance
from peft_core.parts.lowrank import LowRank
from peft_core.parts.ranked import Ranked
from peft_core.values import Count, Rate, Seed, Whole


class Unloading(LowRank):
    """W' = W + s·(U D + B A); U (out, k) and D (k, in) hold what was unloaded, in place of a changed W."""

    def __init__(self, weight: Tensor, rows: tuple[int, int] | None, rank: int, scale: float, unloads: int):
        super().__init__(weight, rows, rank, scale)
        self.most = min(len(self.B), self.A.shape[1])
        kept = min(unloads * rank, self.most)
        self.register_buffer("U", self.B.new_zeros(len(self.B), kept).detach())
        self.register_buffer("D", self.A.new_zeros(kept, self.A.shape[1]).detach())

    def factors(self) -> tuple[Tensor, Tensor]:
        held: Any = self
        return torch.cat((held.D, self.A)), torch.cat((held.U, self.B), 1)

    @torch.no_grad()
    def unload(self, momentum: float, generator: torch.Generator) -> None:
        """Takes a share m of B A over and leaves 1 − m of it in both factors; with m = 0 all of it, and they start anew."""
        held: Any = self
        down, up = torch.cat((held.D, self.A)), torch.cat((held.U, self.B * (momentum or 1.0)), 1)
        if len(down) > self.most:  # the sum itself has no higher rank: the same product, of the rank that it can have
            q, r = torch.linalg.qr(up) if len(up) <= down.shape[1] else torch.linalg.qr(down.t())
            down, up = (r @ down, q) if len(up) <= down.shape[1] else (q.t(), up @ r.t())
        held.D, held.U = down, up
        if momentum:
            for factor in (self.A, self.B):
                factor.mul_(math.sqrt(1 - momentum))
        else:
            bound = 1 / math.sqrt(self.A.shape[1])  # of Kaiming with a = √5
            self.A.copy_(torch.empty(self.A.shape, device="cpu").uniform_(-bound, bound, generator=generator))
            self.B.zero_()

    def _load_from_state_dict(self, state: dict[str, Any], prefix: str, *others: Any) -> None:
        for name in ("U", "D"):  # of a checkpoint after further unloads
            if (saved := state.get(f"{prefix}{name}")) is not None:
                setattr(self, name, getattr(self, name).new_zeros(saved.shape))
        super()._load_from_state_dict(state, prefix, *others)


@dataclass(frozen=True, kw_only=True)
class PeriodicLoRA(Ranked):
    """PeriodicLoRA: a LoRA that is unloaded into the weight every so many steps, so that the change may reach a high rank.

    Meng et al., "PeriodicLoRA: Breaking the Low-Rank Bottleneck in LoRA Optimization", 2024. At every `every`th step
        m > 0:  W ← W + m·s·B A, A and B ← √(1 − m)·(A, B): the function stays, a share of it is now in W;
        m = 0:  W ← W + s·B A, A random, B zero.
    The stock weight stays as it is: what was unloaded is kept, and saved, as factors of a growing rank, exact in float32
    whatever the weight's precision; where that rank would pass min(out, in) the factors are rewritten by QR, their product
    unchanged. Identity at step 0, as LoRA. As in the authors' code m 0.1, 250 steps (some say an epoch), r 8, alpha 16, all
    linears, lr 1e-4 constant, β2 0.99; there Adam's moments are pruned at each unload, which here go on. Rank 8 on q, v:
    294,912 parameters on ViT-B/16 that train.

    Args:
        rank: one rank, or one a block where 0 means absent.
        alpha: s = alpha/rank; 1 where it is None.
        targets: roles or groups.
        rs: rank-stabilised scale.
        every: optimiser steps between two unloads.
        momentum: m.
        seed: of A after an unload with m = 0.
        unloads: how many there were; written into the adapter's card.
    """

    every: Count = 250
    momentum: Rate = 0.1
    seed: Seed = 0
    unloads: Whole = 0
    vit_b16: ClassVar[tuple[tuple[dict[str, Any], int], ...]] = (({"rank": 8}, 294_912),)

    @classmethod
    def examples(cls) -> Iterable[Method]:
        return (cls(rank=2, alpha=3.0, targets=("attn", "mlp"), unloads=1),)

    def install(self, plan: Plan) -> None:
        for place, rank in plan.places(self.targets, self.rank, Unloading):
            plan.change_weight(place, Unloading(plan.stock(place), place.rows, rank, self.scale(rank), self.unloads))

    def after_step(self, model: nn.Module, progress: float) -> None:
        memory = lifecycle.memory(model, self)
        memory["steps"] = memory.get("steps", 0) + 1
        if memory["steps"] % self.every:
            return
        memory["unloads"] = memory.get("unloads", self.unloads) + 1
        for at, change in enumerate(lifecycle.own_grafts(model, self, Unloading)):
            change.unload(self.momentum, chance(self.seed, memory["steps"], at))

    def as_trained(self, model: nn.Module) -> Self:
        unloads = lifecycle.memory(model, self).get("unloads", self.unloads)
        return dataclasses.replace(self, unloads=unloads)
