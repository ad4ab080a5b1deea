from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from peft_core.grafts.averaged import Averaged, instance
from peft_core.method import Method, Plan
from peft_core.parts.chance import chance
from peft_core.parts.lowrank import LowRank
from peft_core.parts.ranked import Ranked
from peft_core.values import Count, Rate, Seed


class Dropped(LowRank):
    """W' = W + s·(diag(m_out) B)(A diag(m_in)); in training masks of every forward's own, else those of its number."""

    adaptation = ""

    def __init__(self, weight: Tensor, rows: tuple[int, int] | None, rank: int, scale: float, rate: float,
                 instances: int, generator: torch.Generator):  # fmt: skip
        super().__init__(weight, rows, rank, scale)
        self.rate = rate
        for name, size in (("inputs", self.A.shape[1]), ("outputs", len(self.B))):
            masks = torch.rand(instances, size, generator=generator, device="cpu") >= rate
            self.register_buffer(name, masks.to(weight.device), persistent=False)

    def named(self, adaptation: str, path: str, slot: str) -> None:
        self.adaptation = adaptation

    def factors(self) -> tuple[Tensor, Tensor]:
        masks: Any = self
        if self.training:
            inputs, outputs = (
                torch.rand(m.shape[1], device=m.device) >= self.rate for m in (masks.inputs, masks.outputs)
            )
        else:
            number = instance(self.adaptation)
            inputs, outputs = masks.inputs[number], masks.outputs[number]
        return self.A * inputs, self.B * outputs[:, None]


@dataclass(frozen=True, kw_only=True)
class LoRADropout(Ranked):
    """LoRA Dropout: W' = W + s·(diag(m_out) B)(A diag(m_in)), m Bernoulli(1 − p): inputs of A and outputs of B drop out.

    Lin et al., "LoRA Dropout as a Sparsity Regularizer for Overfitting Control", 2024. Masks never fall on the rank and are
    not rescaled. Training takes the mean loss of N draws (`lifecycle.instances`: the programs run N forwards a step; a loop
    of one's own that runs one has the same loss in the mean). At use the output is the mean of N forwards with
    masks on, which come from the seed here, so that a model answers alike each time. Start as LoRA's: identity. p 0.5 and N 4
    are from a second hand; no code was found, so this is built from the paper's formulas. Rank 8 on q, v: 294,912
    parameters on ViT-B/16.

    Args:
        rank: one rank, or one a block where 0 means absent.
        alpha: s = alpha/rank; 1 where it is None.
        targets: roles or groups.
        rs: rank-stabilised scale.
        rate: p.
        instances: N.
        seed: of the masks at use.
    """

    rate: Rate = 0.5
    instances: Count = 4
    seed: Seed = 0
    not_mergeable: ClassVar[str | None] = "its output is a mean over several draws of its masks, which is no weight's."
    vit_b16: ClassVar[tuple[tuple[dict[str, Any], int], ...]] = (({"rank": 8}, 294_912),)

    @classmethod
    def examples(cls) -> Iterable[Method]:
        return (cls(rank=2, alpha=3.0, instances=2, targets=("attn", "mlp")),)

    def install(self, plan: Plan) -> None:
        for at, (place, rank) in enumerate(plan.places(self.targets, self.rank, Dropped)):
            change = Dropped(plan.stock(place), place.rows, rank, self.scale(rank), self.rate, self.instances,
                             chance(self.seed, at))  # fmt: skip
            plan.change_weight(place, change)
        plan.join("", "averaged", Averaged(self.instances))

    def forwards(self) -> int:
        return self.instances
