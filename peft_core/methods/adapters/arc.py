import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from peft_core.grafts.graft import match
from peft_core.grafts.shared import Reference
from peft_core.method import Method, Plan
from peft_core.parts.input_map import LinearMap
from peft_core.values import Rate, Widths


@dataclass(frozen=True, kw_only=True)
class ARC(Method):
    """ARC: x ← x + U drop(c ⊙ Uᵀ x) + b before attention and before the MLP, behind their norms; U is shared by all layers.

    Dong et al., "Efficient Adaptation of Large Vision Transformer via Adapter Re-Composing", NeurIPS 2023. One U (D, h) for
    attention and one for the MLP goes down and, transposed, up; each layer has c (h) and b (D) of its own. Linear, so it
    merges: W' = W (I + U diag(c) Uᵀ), b' = b + W b. U is Xavier-uniform, b zero, c zero before attention and Xavier-uniform
    over (1, h) before the MLP: no identity at step 0, as in DavidYanAnDe/ARC, whose h 50 and dropout 0.1 these are.
    96,432 parameters on ViT-B/16, 48,216 before attention alone. A hierarchy has a U for each width.

    Args:
        bottleneck: h, one for all layers, or one a block where 0 means absent (a U is made for each width).
        positions: before which steps.
        dropout: on what goes up.
    """

    bottleneck: Widths = 50
    positions: Sequence[Literal["attn", "mlp"]] = ("attn", "mlp")
    dropout: Rate = 0.1
    vit_b16: ClassVar[tuple[tuple[dict[str, Any], int], ...]] = (({}, 96_432), ({"positions": ("attn",)}, 48_216))

    @property
    def identity(self) -> bool:  # type: ignore[override]
        return "mlp" not in self.positions

    @classmethod
    def examples(cls) -> Iterable[Method]:
        return cls(bottleneck=6, dropout=0.0), cls(bottleneck=6, positions=("attn",))

    def install(self, plan: Plan) -> None:
        for sublayer, width, dim in plan.sublayers(self.positions, self.bottleneck):
            options = plan.options_at(sublayer.norm)

            def projection(dim: int = dim, width: int = width, options: dict[str, Any] = options) -> nn.Parameter:
                return nn.Parameter(nn.init.xavier_uniform_(torch.empty(dim, width, **options)))

            owner = "" if sublayer.tower is None else f"{sublayer.tower}_"
            shared = plan.shared(f"{owner}{sublayer.kind}_{dim}_{width}", projection)
            start = 0.0 if sublayer.kind == "attn" else math.sqrt(6 / (1 + width))
            plan.add_before(sublayer, Recomposed(dim, width, shared, start, self.dropout, options))


class Recomposed(LinearMap):
    """U drop(c ⊙ Uᵀ x) + b, c uniform in ± `start`."""

    def __init__(
        self, dim: int, width: int, shared: Reference, start: float, dropout: float, options: dict[str, Any]
    ) -> None:
        super().__init__()
        self.shared, self.dropout = shared, dropout
        self.c = nn.Parameter(torch.empty(width, **options).uniform_(-start, start))
        self.b = nn.Parameter(torch.zeros(dim, **options))

    def forward(self, x: Tensor) -> Tensor:
        u = self.shared()
        inner = F.linear(match(x, u), (u * self.c).t())
        return F.linear(F.dropout(inner, self.dropout, self.training), u, self.b)

    def factors(self) -> tuple[Tensor, Tensor, Tensor]:
        u = self.shared()
        return u, (u * self.c).t(), self.b
