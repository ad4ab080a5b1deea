from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from peft_core.errors import PeftError
from peft_core.grafts.graft import match
from peft_core.method import Method, Plan
from peft_core.parts.input_map import LinearMap
from peft_core.values import Count, Positive, Rate, Widths


@dataclass(frozen=True, kw_only=True)
class RepAdapter(Method):
    """RepAdapter: x ← x + s·(B drop(A x + a) + b) before attention and before the MLP, behind their norms; B is grouped.

    Luo et al., "Towards Efficient Visual Adaption via Structural Re-parameterization", 2023. A (h, D), a (h), B (D, h/g) in
    g groups (a group of the D outputs reads a group of the h), b (D). Without an activation it merges into the weight that
    reads x: W' = W (I + s·B A), b' = b + s·W (B a + b). A is Xavier-uniform, B and the biases zero: identity at step 0; h 8,
    g 2, dropout 0.1, s of each task from 0.1 to 10: luogen1996/RepAdapter. On ViT-B/16 239,808 parameters (119,904 before
    attention alone), 221,184 of them no biases, which the paper counts. Where q, k and v are modules of their own they share
    one. Where a family's attention reads its weights itself (EVA's fused qkv) it stands before attention and does not merge.

    Args:
        bottleneck: one width h, or one a block where 0 means absent.
        groups: g, which divides h and D.
        positions: before which steps.
        scale: s.
        dropout: behind A.
    """

    bottleneck: Widths = 8
    groups: Count = 2
    positions: Sequence[Literal["attn", "mlp"]] = ("attn", "mlp")
    scale: Positive = 1.0
    dropout: Rate = 0.1
    vit_b16: ClassVar[tuple[tuple[dict[str, Any], int], ...]] = (({}, 239_808), ({"positions": ("attn",)}, 119_904))

    @classmethod
    def examples(cls) -> Iterable[Method]:
        return cls(bottleneck=4, dropout=0.0), cls(bottleneck=4, positions=("attn",), groups=1, scale=3.0)

    def install(self, plan: Plan) -> None:
        for sublayer, width, dim in plan.sublayers(self.positions, self.bottleneck):
            if width % self.groups or dim % self.groups:
                raise PeftError(
                    f"rep_adapter splits {width} hidden and {dim} outer features into {self.groups} groups: choose groups that "
                    "divide both."
                )
            options = plan.options_at(sublayer.norm)
            plan.add_before(sublayer, Grouped(dim, width, self.groups, self.scale, self.dropout, options))


class Grouped(LinearMap):
    """s·(B drop(A x + a) + b), B in groups."""

    def __init__(
        self, dim: int, width: int, groups: int, scale: float, dropout: float, options: dict[str, Any]
    ) -> None:
        super().__init__()
        self.A, self.a = nn.Parameter(torch.empty(width, dim, **options)), nn.Parameter(torch.zeros(width, **options))
        self.B, self.b = (
            nn.Parameter(torch.zeros(dim, width // groups, **options)),
            nn.Parameter(torch.zeros(dim, **options)),
        )
        nn.init.xavier_uniform_(self.A)
        self.groups, self.scale, self.dropout = groups, scale, dropout

    def forward(self, x: Tensor) -> Tensor:
        inner = F.dropout(F.linear(match(x, self.A), self.A, self.a), self.dropout, self.training)
        return F.linear(inner, *self._up())

    def _up(self) -> tuple[Tensor, Tensor]:
        """s·B (D, h), zero between the groups, and s·b."""
        return torch.block_diag(*self.B.unflatten(0, (self.groups, -1))) * self.scale, self.b * self.scale

    def factors(self) -> tuple[Tensor, Tensor, Tensor]:
        up, b = self._up()
        return up, self.A, up @ self.a + b
