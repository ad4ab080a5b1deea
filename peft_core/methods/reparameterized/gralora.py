import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from peft_core.errors import PeftError
from peft_core.grafts.graft import Delta
from peft_core.method import Method, Plan
from peft_core.parts.factors import new_parameter
from peft_core.parts.lowrank import LowRank
from peft_core.parts.ranked import Ranked
from peft_core.values import Count, Positive, Rate, Whole, Widths


@dataclass(frozen=True, kw_only=True)
class GraLoRA(Ranked):
    """GraLoRA: W cut into k × k blocks, each of which gets a LoRA of rank r/k of its own: as many parameters as LoRA's rank r.

    Jung et al., "GraLoRA: Granular Low-Rank Adaptation for Parameter-Efficient Fine-Tuning", NeurIPS 2025. Of block (j, n)
    W' = W + s·B_jn A_jn, B_jn (out/k, r/k), A_jn (r/k, in/k), s = alpha/(r + hybrid); `hybrid` is the rank of a plain LoRA
    beside them. A's are Kaiming-uniform (a = √5), B's zero: identity at step 0. Defaults are Hugging Face PEFT's. Computed
    as one low-rank change of rank r·k whose factors are mostly zeros. Rank 8 on q, v: 294,912 parameters on ViT-B/16.

    Args:
        rank: r, a multiple of k; one rank, or one a block where 0 means absent.
        alpha: s = alpha/(r + hybrid); 1 where it is None.
        targets: roles or groups.
        rs: rank-stabilised scale.
        cuts: k, which divides the layers' inputs and outputs.
        hybrid: rank of the plain LoRA.
        dropout: on the change's own input; above 0 training takes the plain path.
    """

    rank: Widths = 32
    alpha: Positive | None = 64.0
    cuts: Count = 2
    hybrid: Whole = 0
    dropout: Rate = 0.0
    vit_b16: ClassVar[tuple[tuple[dict[str, Any], int], ...]] = (
        ({"rank": 8}, 294_912), ({"rank": 8, "cuts": 4}, 294_912), ({"rank": 8, "hybrid": 4}, 442_368),
    )  # fmt: skip

    @classmethod
    def examples(cls) -> Iterable[Method]:
        small = cls(rank=4, targets=("attn", "mlp"))
        return small, replace(small, hybrid=1)

    def install(self, plan: Plan) -> None:
        for place, rank in plan.places(self.targets, self.rank, LowRank):
            shape = plan.shape(place)
            for what, size in {"rank": rank, "outputs": shape[0], "inputs": shape[1]}.items():
                if size % self.cuts:
                    raise PeftError(
                        f"gralora got {self.cuts} cuts, which do not divide the {what}, {size}, at {place.module}."
                    )
            settings = self.cuts, self.hybrid, self.scale(rank + self.hybrid), self.dropout
            plan.change_weight(place, Granular(plan.stock(place), place.rows, shape, rank, *settings))


class Granular(LowRank):
    """W' = W + s·B A: down (k, r, in/k) holds A_jn of all j one above the other, up (k, out/k, r) B_jn of all n side by side."""

    def __init__(self, weight: Tensor, rows: tuple[int, int] | None, shape: tuple[int, int], rank: int, cuts: int,
                 hybrid: int, scale: float, dropout: float):  # fmt: skip
        Delta.__init__(self, rows)
        out, inner = shape
        self.down, self.up = (
            new_parameter(weight, cuts, rank, inner // cuts),
            new_parameter(weight, cuts, out // cuts, rank),
        )
        self.whole_down = new_parameter(weight, hybrid, inner) if hybrid else None
        self.whole_up = new_parameter(weight, out, hybrid) if hybrid else None
        for down in (*self.down, self.whole_down):
            if down is not None:
                nn.init.kaiming_uniform_(down, a=math.sqrt(5))
        for up in (self.up, self.whole_up):
            if up is not None:
                nn.init.zeros_(up)
        self.scale = scale
        self.dropout = nn.Dropout(dropout) if dropout else None

    def factors(self) -> tuple[Tensor, Tensor]:
        """A (k·k·r/k + hybrid, in) and B, its transpose's like: row and column of block (j, n) are A_jn within its own inputs and
        B_jn within its own outputs."""
        cuts = len(self.down)
        own = torch.eye(cuts, device=self.down.device, dtype=self.down.dtype)
        rows = self.down.unflatten(1, (cuts, -1)).transpose(0, 1).unsqueeze(3) * own.view(1, cuts, 1, cuts, 1)
        columns = self.up.unsqueeze(2) * own.view(cuts, 1, cuts, 1)
        down, up = rows.flatten(3).flatten(0, 2), columns.flatten(2).flatten(0, 1)
        if self.whole_down is None or self.whole_up is None:
            return down, up
        return torch.cat((down, self.whole_down)), torch.cat((up, self.whole_up), 1)
