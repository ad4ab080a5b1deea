from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn

from peft_core.grafts.formed import Formed
from peft_core.method import Method, Plan
from peft_core.parts.factors import new_parameter, rows_of
from peft_core.parts.scale_shift import ScaleShift
from peft_core.values import NotNegative

LINEARS = ("q", "k", "v", "proj", "cross_q", "cross_k", "cross_v", "cross_proj", "fc1", "fc2")
NORMS = ("patch_embed", "norm1", "norm2", "norm", "merge")


@dataclass(frozen=True, kw_only=True)
class RLRR(Method):
    """RLRR: W' = W + W ⊙ (s cᵀ), b' = b + f: a residual of rank one scales rows and columns; s (out, 1), c (1, in).

    Dong et al., "Low-Rank Rescaled Vision Transformer Fine-Tuning: A Residual Design Approach", CVPR 2024. On q, k, v, proj,
    fc1 and fc2, each with factors of its own; patch embedding and norms get SSF's scale and shift, y ← γ ⊙ y + β. s and c are
    Kaiming-uniform (s within ± √6, c within ± √(6/in)), f zero, γ ~ N(1, 0.02²), β ~ N(0, 0.02²), as in zstarN70/RLRR: no
    identity at step 0. Merges where the layer has a bias. 288,768 parameters on ViT-B/16.

    Args:
        targets: roles of linears or convolutions; those above where None, but for EVA's fused qkv, whose bias stands outside.
        norms: roles with SSF's scale and shift; patch embedding and all norms of the blocks and behind them where None.
        init_std: of γ and β.
    """

    targets: Sequence[str] | None = None
    norms: Sequence[str] | None = None
    init_std: NotNegative = 0.02
    identity: ClassVar[bool] = False
    vit_b16: ClassVar[tuple[tuple[dict[str, Any], int], ...]] = (({}, 288_768), ({"norms": ()}, 248_832))

    @classmethod
    def examples(cls) -> Iterable[Method]:
        return (cls(),)

    def install(self, plan: Plan) -> None:
        for place in plan.biased(self.targets, LINEARS, Rescaled):
            plan.change_weight(place, Rescaled(plan.stock(place), place.rows))
        if self.norms is None or self.norms:
            for place in plan.biased(self.norms, NORMS):
                plan.change_weight(place, ScaleShift(plan.stock(place), place.rows, self.init_std))


class Rescaled(Formed):
    """W' = W + W ⊙ (s cᵀ), b' = b + f; a convolution's c is one an input channel."""

    needs_matrix = True

    def __init__(self, weight: Tensor, rows: tuple[int, int] | None):
        super().__init__(rows)
        out, ones = rows_of(weight, rows), [1] * (weight.dim() - 2)
        self.s, self.c = new_parameter(weight, out, 1, *ones), new_parameter(weight, 1, weight.shape[1], *ones)
        self.f = new_parameter(weight, out)
        for factor in (self.s, self.c):
            nn.init.kaiming_uniform_(factor)
        nn.init.zeros_(self.f)

    def forward(self, weight: Tensor) -> Tensor:
        return (weight + weight * self.c * self.s).to(weight.dtype)

    def bias(self, bias: Tensor | None) -> Tensor:
        return self.f if bias is None else bias + self.f.to(bias.dtype)
