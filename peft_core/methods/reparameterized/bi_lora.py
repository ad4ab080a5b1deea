from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from peft_core.grafts.graft import Delta, match
from peft_core.method import Method, Plan
from peft_core.parts.factors import new_parameter, rows_of
from peft_core.parts.lowrank import LowRank
from peft_core.parts.quantised.few_bits import FewBits, down_and_up, forget_statistics, round_heads
from peft_core.parts.ranked import Ranked
from peft_core.values import Bits, Rate, Widths


@dataclass(frozen=True, kw_only=True)
class BiLoRA(Ranked):
    """Bi-LoRA: W' = W + s·B A, A (rank, in) and B (out, rank) of 1 to 8 bits a number.

    Jie et al., "Revisiting the Parameter Efficiency of Adapters from the Perspective of Precision Redundancy", ICCV 2023. A
    factor is standardised, each number takes the nearest of 2^bits levels of the normal distribution, and mean and deviation
    come back (`parts.quantised`); trained through the rounding. A is Kaiming-uniform (a = √5), B N(0, 0.001²) truncated at 2σ:
    not quite identity at step 0. On q and v, rank 32, 1 bit, dropout 0.1 between A and B (not on the input), s of each task
    from 0.01 to 100: JieShibo/PETL-ViT. Merges. The file holds the bits, so rank 1 with a head of 1 bit takes some 10 KB a
    task (the authors' files 9.5 KB on average over VTAB-1k, whose heads have no bias; here it stays, in float). 1,179,648
    numbers on ViT-B/16, 36,864 at rank 1.

    Args:
        rank: one rank, or one a block where 0 means absent.
        alpha: s = alpha/rank, 1 where it is None: for an s of 10 at rank 32 it is 320.
        targets: roles or groups.
        rs: rank-stabilised scale.
        bits: of each number.
        head_bits: of the classifier's weight; float where None.
        dropout: between A and B; above 0 training takes the plain path.
    """

    rank: Widths = 32
    bits: Bits = 1
    head_bits: Bits | None = None
    dropout: Rate = 0.1
    identity: ClassVar[bool] = False
    vit_b16: ClassVar[tuple[tuple[dict[str, Any], int], ...]] = (({}, 1_179_648), ({"rank": 1, "head_bits": 1}, 36_864))

    @classmethod
    def examples(cls) -> Iterable[Method]:
        return cls(rank=2, alpha=20.0, dropout=0.0), cls(rank=2, bits=3, dropout=0.0, targets=("attn", "mlp"))

    def install(self, plan: Plan) -> None:
        for place, rank in plan.places(self.targets, self.rank, LowRank):
            change = FewBitLowRank(plan.stock(place), place.rows, rank, self.scale(rank), self.bits, self.dropout)
            plan.change_weight(place, change)
        round_heads(plan, self.head_bits)

    def after_step(self, model: nn.Module, progress: float) -> None:
        forget_statistics(model, self)


class FewBitLowRank(LowRank):
    """W' = W + s·B A with rounded factors; dropout stands between them."""

    def __init__(
        self, weight: Tensor, rows: tuple[int, int] | None, rank: int, scale: float, bits: int, dropout: float
    ) -> None:
        Delta.__init__(self, rows)
        a, b = new_parameter(weight, rank, weight[0].numel()), new_parameter(weight, rows_of(weight, rows), rank)
        down, up = down_and_up(a.data, b.data)
        self.down, self.up = FewBits(down, bits), FewBits(up, bits)
        self.scale, self.dropout = scale, nn.Dropout(dropout) if dropout else None

    def factors(self) -> tuple[Tensor, Tensor]:
        return self.down(), self.up()

    def on_input(self, x: Tensor, run: Any) -> Tensor:
        down, up = self.factors()
        inner = run(match(x, down), down)
        inner = inner.movedim(1, -1) if (spatial := inner.dim() == 4) else inner
        inner = inner if self.dropout is None else self.dropout(inner)
        out = F.linear(inner, up * (self.scale * self.factor))
        return out.movedim(-1, 1) if spatial else out
