from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from peft_core.method import Method, Plan
from peft_core.parts.chance import chance
from peft_core.parts.lowrank import LowRank
from peft_core.parts.ranked import Ranked
from peft_core.values import Count, Rate, Seed, Share


class Masked(LowRank):
    """W' = W + s·Σ_i (B ⊙ M_i)(A ⊙ N_i), one pair under d fixed masks."""

    def __init__(self, weight: Tensor, rows: tuple[int, int] | None, rank: int, scale: float, dropout: float,
                 layers: int, density: float, generator: torch.Generator):  # fmt: skip
        super().__init__(weight, rows, rank, scale, dropout)
        for name, factor in (("down_masks", self.A), ("up_masks", self.B)):
            masks = torch.stack([mask_of(factor.shape, density, generator) for _ in range(layers)])
            self.register_buffer(name, masks.to(weight.device), persistent=False)

    def factors(self) -> tuple[Tensor, Tensor]:
        masks: Any = self
        down, up = self.A * masks.down_masks, self.B * masks.up_masks  # d r in, d out r
        return down.flatten(0, 1), up.transpose(0, 1).flatten(1)


def mask_of(shape: torch.Size, density: float, generator: torch.Generator) -> Tensor:
    """As many ones as the density says, anywhere."""
    size = shape.numel()
    mask = torch.zeros(size, dtype=torch.bool, device="cpu")
    mask[torch.randperm(size, generator=generator, device="cpu")[: int(size * density)]] = True
    return mask.view(shape)


@dataclass(frozen=True, kw_only=True)
class CapaBoost(Ranked):
    """CapaBoost-LoRA: W' = W + s·Σ_{i ≤ d} (B ⊙ M_i)(A ⊙ N_i): one pair of factors under d fixed random masks has a rank up
    to d · r.

    Song et al., "Increasing Model Capacity for Free: A Simple Strategy for Parameter Efficient Fine-tuning", ICLR 2024. As in
    LINs-lab/CapaBoost each mask keeps exactly ⌊density · size⌋ entries, uniformly over its matrix; the masks come from the
    seed, which the card holds. Start as LoRA's: A Kaiming-uniform, B zero, identity at step 0. Entries that no mask keeps
    (a share (1 − density)^d) do not move. The 2:4 masks of the paper are left out. Their settings: r 8, alpha 16, d 2,
    density 0.5, lr 5e-4 to 1.5e-3. Rank 8 on q, v: 294,912 parameters on ViT-B/16, 221,184 of which are used.

    Args:
        rank: one rank, or one a block where 0 means absent.
        alpha: s = alpha/rank; 1 where it is None.
        dropout: on the change's own input; above 0 training takes the plain path.
        targets: roles or groups.
        rs: rank-stabilised scale.
        layers: d.
        density: the share of a factor that each mask keeps.
        seed: of the masks.
    """

    dropout: Rate = 0.0
    layers: Count = 2
    density: Share = 0.5
    seed: Seed = 0
    vit_b16: ClassVar[tuple[tuple[dict[str, Any], int], ...]] = (({"rank": 8}, 294_912),)

    @classmethod
    def examples(cls) -> Iterable[Method]:
        return (cls(rank=2, alpha=3.0, targets=("attn", "mlp")),)

    def install(self, plan: Plan) -> None:
        for at, (place, rank) in enumerate(plan.places(self.targets, self.rank, Masked)):
            change = Masked(plan.stock(place), place.rows, rank, self.scale(rank), self.dropout, self.layers, self.density,
                            chance(self.seed, at))  # fmt: skip
            plan.change_weight(place, change)
