import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from peft_core.errors import PeftError
from peft_core.grafts.graft import match
from peft_core.method import Method, Plan
from peft_core.values import Count


@dataclass(frozen=True, kw_only=True)
class LoRand(Method):
    """LoRand: behind attention and MLP y ← y + Up gelu(Down y + a) + b, Down = (Σ_i P_i K_i Q_i)ᵀ, Up = (Σ_i R_i K_i S_i)ᵀ.

    Yin et al., "1% VS 100%: Parameter-Efficient Low Rank Adapter for Dense Predictions", CVPR 2023. P_i (D, β), K_i (β, β), Q_i
    (β, h), R_i (h, β), S_i (β, D); the α kernels K_i serve both ways of an adapter. h = D/2, α 2, β 8: so Swin-B has the 1.20 M
    parameters that are published for COCO. The authors' code is not to be had: the form is read in a public reimplementation
    for SAM, which starts every factor Kaiming-uniform (a = √5, `init="kaiming"`); here S_i and the biases are zero by default:
    identity at step 0. 915,456 parameters on ViT-B/16.

    Args:
        branches: α.
        rank: β.
        reduction: D/h.
        init: of S_i.
    """

    branches: Count = 2
    rank: Count = 8
    reduction: Count = 2
    init: Literal["zero", "kaiming"] = "zero"
    needs: ClassVar[tuple[str, ...]] = ("gates",)
    not_mergeable: ClassVar[str | None] = "a bottleneck with an activation is no change of a weight."
    vit_b16: ClassVar[tuple[tuple[dict[str, Any], int], ...]] = (({}, 915_456),)

    @property
    def identity(self) -> bool:  # type: ignore[override]
        return self.init == "zero"

    @classmethod
    def examples(cls) -> Iterable[Method]:
        return (cls(rank=2),)

    def install(self, plan: Plan) -> None:
        for sublayer, _, dim in plan.sublayers(("attn", "cross_attn", "mlp"), 1):
            width = dim // self.reduction
            if width < self.rank:
                raise PeftError(
                    f"lo_rand got reduction {self.reduction}, which leaves {width} of {dim} features at {sublayer.body}, below "
                    f"the rank {self.rank}: lower either."
                )
            options = plan.options_at(sublayer.norm)
            plan.add_behind(sublayer, Branches(dim, width, self.branches, self.rank, self.init == "zero", options))


class Branches(nn.Module):
    """Up gelu(Down x + a) + b."""

    def __init__(self, dim: int, width: int, branches: int, rank: int, zero: bool, options: dict[str, Any]) -> None:
        super().__init__()

        def made(rows: int, columns: int) -> nn.Parameter:
            return nn.Parameter(torch.stack([drawn(rows, columns, options) for _ in range(branches)]))

        self.kernel = made(rank, rank)
        self.down_left, self.down_right = made(dim, rank), made(rank, width)
        self.up_left, self.up_right = made(width, rank), made(rank, dim)
        self.down_bias, self.up_bias = (nn.Parameter(torch.zeros(size, **options)) for size in (width, dim))
        if zero:
            nn.init.zeros_(self.up_right)

    def forward(self, x: Tensor) -> Tensor:
        down = (self.down_left @ self.kernel @ self.down_right).sum(0)
        up = (self.up_left @ self.kernel @ self.up_right).sum(0)
        inner = F.gelu(F.linear(match(x, down), down.t(), self.down_bias))
        return F.linear(inner, up.t(), self.up_bias)


def drawn(rows: int, columns: int, options: dict[str, Any]) -> Tensor:
    return nn.init.kaiming_uniform_(torch.empty(rows, columns, **options), a=math.sqrt(5))
