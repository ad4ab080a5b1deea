from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from peft_core import lifecycle
from peft_core.errors import PeftError
from peft_core.method import Method, Plan
from peft_core.parts.chance import chance
from peft_core.parts.lowrank import LowRank
from peft_core.parts.ranked import Ranked
from peft_core.values import Count, Seed


class Truncated(LowRank):
    """W' = W + s·(r/b)·B[:, :b] A[:b], with a b that is drawn in training, where row and column b alone learn."""

    def __init__(self, weight: Tensor, rows: tuple[int, int] | None, rank: int, scale: float, used: int, below: bool):
        super().__init__(weight, rows, rank, scale)
        self.used, self.below = used, below
        self.register_buffer("drawn", torch.full((), rank, device=weight.device))

    def draw(self, share: float) -> None:
        drawn: Any = self.drawn
        drawn.fill_(1 + int(share * len(self.A)))

    def factors(self) -> tuple[Tensor, Tensor]:
        index = torch.arange(len(self.A), device=self.A.device)
        if not self.training:
            return self.A, self.B * ((index < self.used) * (len(index) / self.used))
        drawn: Any = self.drawn
        learns = index < drawn if self.below else index == drawn - 1
        up = torch.where(learns, self.B, self.B.detach()) * ((index < drawn) * (len(index) / drawn))
        return torch.where(learns[:, None], self.A, self.A.detach()), up.to(self.B.dtype)


@dataclass(frozen=True, kw_only=True)
class DyLoRA(Ranked):
    """DyLoRA: one LoRA that may be cut to any rank, W' = W + s·(r/b)·B[:, :b] A[:b], with b drawn for each step.

    Valipour et al., "DyLoRA: Parameter-Efficient Tuning of Pre-trained Models using Dynamic Search-Free Low-Rank Adaptation",
    EACL 2023. As in huawei-noah/Efficient-NLP one b, uniform over 1 … r, stands for all layers in a step, row and column b
    alone get a gradient, and each factor is weighed by √(r/b), so that the scale is alpha/b. Start as LoRA's: identity. b is
    a function of seed and step. Their settings: r 8, alpha 16, q and v; lr 4e-4, weight decay 0.1. Rank 8 on q, v: 294,912
    parameters on ViT-B/16.

    Args:
        rank: the largest rank, r; one a block where a list.
        alpha: s = alpha/rank; 1 where it is None.
        targets: roles or groups.
        rs: rank-stabilised scale.
        rank_at_use: b outside of training and in merged weights; r where None.
        train_below: every row and column up to b learns, the paper's first variant.
        seed: of the draws.
    """

    rank_at_use: Count | None = None
    train_below: bool = False
    seed: Seed = 0
    vit_b16: ClassVar[tuple[tuple[dict[str, Any], int], ...]] = (({"rank": 8}, 294_912),)

    @classmethod
    def examples(cls) -> Iterable[Method]:
        return cls(rank=3, alpha=3.0, targets=("attn", "mlp")), cls(rank=3, rank_at_use=2, train_below=True)

    def install(self, plan: Plan) -> None:
        for place, rank in plan.places(self.targets, self.rank, Truncated):
            used = rank if self.rank_at_use is None else self.rank_at_use
            if used > rank:
                raise PeftError(f"dylora got rank_at_use {used}, above the rank {rank} that it trains.")
            change = Truncated(plan.stock(place), place.rows, rank, self.scale(rank), used, self.train_below)
            if not change.A.is_meta:
                change.draw(self._share(0))
            plan.change_weight(place, change)

    def _share(self, step: int) -> float:
        return torch.rand((), generator=chance(self.seed, step)).item()

    def after_step(self, model: nn.Module, progress: float) -> None:
        memory = lifecycle.memory(model, self)
        memory["steps"] = memory.get("steps", 0) + 1
        share = self._share(memory["steps"])
        for change in lifecycle.own_grafts(model, self, Truncated):
            change.draw(share)
