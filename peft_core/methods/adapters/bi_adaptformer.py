from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from peft_core.grafts.graft import match
from peft_core.method import Method, Plan
from peft_core.parts.quantised.few_bits import FewBits, down_and_up, forget_statistics, round_heads
from peft_core.values import Bits, Positive, Rate, Widths


@dataclass(frozen=True, kw_only=True)
class BiAdaptFormer(Method):
    """Bi-AdaptFormer: x ← x + MLP(norm2(x)) + s·Up(drop(ReLU(Down x))), Down (h, D) and Up (D, h) of 1 to 8 bits a number.

    Jie et al., "Revisiting the Parameter Efficiency of Adapters from the Perspective of Precision Redundancy", ICCV 2023. A
    weight is standardised, each number takes the nearest of 2^bits levels of the normal distribution, and mean and deviation
    come back (`parts.quantised`); trained through the rounding. No biases. Down is Kaiming-uniform (a = √5), Up
    N(0, 0.001²) truncated at 2σ: not quite identity at step 0. h 32, 1 bit, dropout 0.1, s of each task from 0.01 to 100:
    JieShibo/PETL-ViT. The file holds the bits, so h 1 with a head of 1 bit takes some 7 KB a task (the authors' files 7.1 KB
    on average over VTAB-1k, whose heads have no bias; here it stays, in float). 589,824 numbers on ViT-B/16, 18,432 at h 1.

    Args:
        bottleneck: one width h, or one a block where 0 means absent.
        bits: of each number.
        head_bits: of the classifier's weight; float where None.
        scale: s.
        dropout: between Down and Up.
    """

    bottleneck: Widths = 32
    bits: Bits = 1
    head_bits: Bits | None = None
    scale: Positive = 1.0
    dropout: Rate = 0.1
    identity: ClassVar[bool] = False
    not_mergeable: ClassVar[str | None] = "a branch with an activation beside the MLP is no change of its weights."
    vit_b16: ClassVar[tuple[tuple[dict[str, Any], int], ...]] = (
        ({}, 589_824),
        ({"bottleneck": 1, "head_bits": 1}, 18_432),
    )

    @classmethod
    def examples(cls) -> Iterable[Method]:
        return cls(bottleneck=8, dropout=0.0, scale=10.0), cls(bottleneck=8, bits=3, dropout=0.0, scale=10.0)

    def install(self, plan: Plan) -> None:
        for sublayer, width, dim in plan.sublayers(("mlp",), self.bottleneck):
            change = FewBitBottleneck(dim, width, self.bits, self.scale, self.dropout, plan.options_at(sublayer.norm))
            plan.add_branch(sublayer, change)
        round_heads(plan, self.head_bits)

    def after_step(self, model: nn.Module, progress: float) -> None:
        forget_statistics(model, self)


class FewBitBottleneck(nn.Module):
    """s·Up(drop(ReLU(Down x)))."""

    def __init__(self, dim: int, width: int, bits: int, scale: float, dropout: float, options: dict[str, Any]) -> None:
        super().__init__()
        down, up = down_and_up(torch.empty(width, dim, **options), torch.empty(dim, width, **options))
        self.down, self.up = FewBits(down, bits), FewBits(up, bits)
        self.scale, self.dropout = scale, dropout

    def forward(self, x: Tensor) -> Tensor:
        inner = F.relu(F.linear(match(x, self.down.weight), self.down()))
        return F.linear(F.dropout(inner, self.dropout, self.training), self.up()) * self.scale
