from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, cast

import torch.nn.functional as F
from torch import Tensor, nn

from peft_core.errors import PeftError
from peft_core.grafts.graft import match
from peft_core.method import Method, Plan
from peft_core.parts.bottleneck import ACTIVATIONS, drop_samples
from peft_core.parts.grid import over_patches
from peft_core.values import Positive, Rate, Widths


@dataclass(frozen=True, kw_only=True)
class ConvPass(Method):
    """ConvPass: beside attention and MLP, x ← x + F(norm x) + s·Up(drop(act(Conv(act(Down norm x))))), Conv 3 × 3 on the grid.

    Jie and Deng, "Convolutional Bypasses Are Better Vision Transformer Adapters", ECAI 2024. Down (h, D) and Up (D, h) work
    on every token; Conv (h, h, 3, 3) sees the patches as a picture, and each other token (class token, registers, prompts)
    as a picture of its own. Down is Xavier-uniform, Conv the identity, Up zero: identity at step 0. act is QuickGELU, dropout
    0.1, the block's own drop path acts on the branch; s = 1 by default, searched from 0.01 to 10 a task: JieShibo/PETL-ViT.
    327,552 parameters on ViT-B/16 at 8.

    Args:
        bottleneck: one width h, or one a block where 0 means absent.
        positions: beside which steps.
        scale: s.
    """

    bottleneck: Widths = 8
    positions: Sequence[Literal["attn", "mlp"]] = ("attn", "mlp")
    scale: Positive = 1.0
    dropout: Rate = 0.1
    needs: ClassVar[tuple[str, ...]] = ("grid",)
    not_mergeable: ClassVar[str | None] = "a convolution over the patches is no change of a layer that sees one token."
    vit_b16: ClassVar[tuple[tuple[dict[str, Any], int], ...]] = (({}, 327_552),)

    @classmethod
    def examples(cls) -> Iterable[Method]:
        small = cls(bottleneck=4, dropout=0.0)
        return small, replace(small, tower="image"), replace(small, positions=("mlp",))

    def install(self, plan: Plan) -> None:
        for sublayer, width, dim in plan.sublayers(self.positions, self.bottleneck):
            grid = plan.stream_of(sublayer).grid
            if grid is None:
                part = f"the {sublayer.tower} tower" if sublayer.tower else f"this {plan.anatomy.family}"
                raise PeftError(f"conv_pass convolves over patches, and {part} has no grid of them.")
            rate = getattr(plan.model.get_submodule(sublayer.gate or ""), "drop_prob", 0.0)
            change = OverGrid(dim, width, grid, self.scale, self.dropout, rate, plan.options_at(sublayer.norm))
            plan.add_branch(sublayer, change, normed=True)


class OverGrid(nn.Module):
    """s·Up(drop(act(Conv(act(Down x))))) for B N D, whose last H·W tokens (or whole frames of them) are patches, or B H W D."""

    def __init__(self, dim: int, width: int, grid: tuple[int, int], scale: float, dropout: float, drop_path: float,
                 options: dict[str, Any]) -> None:  # fmt: skip
        super().__init__()
        self.down, self.up = nn.Linear(dim, width, **options), nn.Linear(width, dim, **options)
        self.conv = nn.Conv2d(width, width, 3, padding=1, **options)
        self.grid, self.scale, self.dropout, self.drop_path = grid, scale, dropout, drop_path
        nn.init.xavier_uniform_(self.down.weight)
        nn.init.dirac_(self.conv.weight)
        for zero in (self.down.bias, self.conv.bias, self.up.weight, self.up.bias):
            nn.init.zeros_(zero)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        act = ACTIVATIONS["quick_gelu"]
        inner = act(self.down(match(x, self.down.weight)))
        inner = over_patches(inner, self.grid, self.conv, self.alone, "conv_pass")
        inner = F.dropout(act(inner), self.dropout, self.training)
        return drop_samples(self.up(inner) * self.scale, self.drop_path, self.training)

    def alone(self, inner: Tensor) -> Tensor:
        """Each token as a picture of its own: what the kernel's middle makes of it."""
        bias = cast(Tensor, self.conv.bias)
        return F.linear(inner, self.conv.weight[:, :, 1, 1].to(inner.dtype), bias.to(inner.dtype))
