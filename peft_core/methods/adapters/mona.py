from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from peft_core.errors import PeftError
from peft_core.grafts.graft import match
from peft_core.method import Method, Plan
from peft_core.parts.grid import over_patches
from peft_core.values import Rate, Widths

SIZES = (3, 5, 7)


@dataclass(frozen=True, kw_only=True)
class Mona(Method):
    """Mona: behind every attention and every MLP x ← x + Up(drop(gelu(filter(Down(LN(x) ⊙ γ + x ⊙ γ_x))))), on the stream itself.

    Yin et al., "5%>100%: Breaking Performance Shackles of Full Fine-Tuning on Visual Recognition Tasks", CVPR 2025. filter is f
    ← f + (DW3(f) + DW5(f) + DW7(f))/3, then f ← f + P f: depthwise convolutions of three sizes over the grid and one 1 × 1. γ =
    1e-6, γ_x = 1 (D), LN its own, h = 64, dropout 0.1, linears truncated normal at 0.02 with biases zero, convolutions as torch
    makes them: Leiyi-Hu/mona (5deeac9), written for Swin. Up is not zero there: not identical at step 0. Tokens beside the
    patches, which Swin has not, meet each kernel's middle alone, as ConvPass treats them. 2,684,928 parameters on ViT-B/16.

    Args:
        bottleneck: one width h, or one a block where 0 means absent.
    """

    bottleneck: Widths = 64
    dropout: Rate = 0.1
    identity: ClassVar[bool] = False
    needs: ClassVar[tuple[str, ...]] = ("grid", "gates")
    not_mergeable: ClassVar[str | None] = "a convolution over the patches is no change of a layer that sees one token."
    vit_b16: ClassVar[tuple[tuple[dict[str, Any], int], ...]] = (({}, 2_684_928),)

    @classmethod
    def examples(cls) -> Iterable[Method]:
        small = cls(bottleneck=4, dropout=0.0)
        return small, replace(small, tower="image")

    def install(self, plan: Plan) -> None:
        for sublayer, width, dim in plan.sublayers(("attn", "cross_attn", "mlp"), self.bottleneck):
            grid = plan.stream_of(sublayer).grid
            if grid is None:
                part = f"the {sublayer.tower} tower" if sublayer.tower else f"this {plan.anatomy.family}"
                raise PeftError(f"mona convolves over patches, and {part} has no grid of them.")
            plan.add_after(sublayer, Filtered(dim, width, grid, self.dropout, plan.options_at(sublayer.norm)))


class Filtered(nn.Module):
    """Up(drop(gelu(filter(Down(LN(x) ⊙ γ + x ⊙ γ_x))))) for B N D or B H W D."""

    def __init__(self, dim: int, width: int, grid: tuple[int, int], dropout: float, options: dict[str, Any]) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim, **options)
        self.gamma = nn.Parameter(torch.full((dim,), 1e-6, **options))
        self.gamma_x = nn.Parameter(torch.ones(dim, **options))
        self.down, self.up = nn.Linear(dim, width, **options), nn.Linear(width, dim, **options)
        for layer in (self.down, self.up):
            nn.init.trunc_normal_(layer.weight, std=0.02)
            nn.init.zeros_(layer.bias)
        self.over = nn.ModuleList(
            nn.Conv2d(width, width, size, padding=size // 2, groups=width, **options) for size in SIZES
        )
        self.mix = nn.Conv2d(width, width, 1, **options)
        self.grid, self.dropout = grid, dropout

    def forward(self, x: Tensor) -> Tensor:
        x = match(x, self.gamma)
        inner = self.down(self.norm(x) * self.gamma + x * self.gamma_x)
        inner = over_patches(inner, self.grid, self.filter, self.alone, "mona")
        return self.up(F.dropout(F.gelu(inner), self.dropout, self.training))

    def filter(self, pictures: Tensor) -> Tensor:
        pictures = sum(convolve(pictures) for convolve in self.over) / len(SIZES) + pictures
        return pictures + self.mix(pictures)

    def alone(self, inner: Tensor) -> Tensor:
        """Each token as a picture of its own."""
        over: Any = list(self.over)
        middle = sum(convolve.weight[:, 0, size // 2, size // 2] for convolve, size in zip(over, SIZES, strict=True))
        inner = inner + (inner * middle + sum(convolve.bias for convolve in over)).to(inner.dtype) / len(SIZES)
        mix: Any = self.mix
        return inner + F.linear(inner, mix.weight[:, :, 0, 0].to(inner.dtype), mix.bias.to(inner.dtype))
