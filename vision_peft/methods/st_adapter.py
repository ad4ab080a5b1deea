from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from peft_core.errors import PeftError
from peft_core.grafts.branch import Branch
from peft_core.grafts.graft import Graft, match
from peft_core.method import Method, Plan
from peft_core.parts.bottleneck import kaiming_linear
from peft_core.values import Count, Widths
from vision_peft.video.classified import Classified
from vision_peft.video.over_time import DepthwiseOverTime, add_weighed, check_tower, clips_of, share_of_stream


@dataclass(frozen=True, kw_only=True)
class STAdapter(Method):
    """ST-Adapter: patch tokens x ← x + Up(DWConv(Down x)) across frames, before attention and/or before the MLP.

    Pan et al., "ST-Adapter: Parameter-Efficient Image-to-Video Transfer Learning for Action Recognition", NeurIPS 2022.
    x is (B·T) N D with the frames of a clip folded into the batch; DWConv is depth-wise with kernel (3, 1, 1) over
    T H W, there is no activation, and the class token passes by. Convolution and biases start at zero: identity at
    step 0. Width 384 at D = 768: linziyi96/st-adapter. ViT-B/16: 7,110,144 parameters before the MLP (K400's 12 × 384),
    14,220,288 at both positions (SSv2's 24 × 384). In a classifier of clips the mean over frames stands before the last norm,
    head(norm(Σₜ xₜ / T)), so there step 0 is the frozen model with its mean so placed; by itself it averages behind.

    Args:
        width: one width h, or one a block where 0 means absent; half the stream's width D where None.
        positions: "attn" (before attention), "mlp" (between attention and MLP), or both.
        frames: T, as the clips have it.
        mean_first: False leaves the mean over frames behind the last norm, as the frozen model has it.
    """

    width: Widths | None = None
    positions: Sequence[Literal["attn", "mlp"]] = ("mlp",)
    frames: Count = 8
    mean_first: bool = True
    needs: ClassVar[tuple[str, ...]] = ("tokens", "positions")
    suits: ClassVar[tuple[str, ...]] = ("timm ViT", "open_clip tower", "open_clip model")
    not_mergeable: ClassVar[str | None] = "a convolution over frames is no change of a layer that sees one frame."

    @classmethod
    def of_card(cls, settings: dict[str, Any], format: int) -> dict[str, Any]:
        return settings if format > 1 else settings | {"mean_first": False}

    @classmethod
    def examples(cls) -> Iterable[Method]:
        # in the last block nothing that patch tokens become after attention reaches a class token
        small = cls(width=8, frames=2, positions=("attn",))
        return small, replace(small, tower="image"), replace(small, positions=("attn", "mlp"), blocks=(0,))

    def install(self, plan: Plan) -> None:
        check_tower(plan)
        if not self.positions:
            raise PeftError("st_adapter got no positions: give attn, mlp, or both.")
        for sublayer, width, dim in plan.sublayers(("attn",), share_of_stream(plan, self.width, 2)):
            skipped = plan.token_stream(sublayer.tower).prefix
            for position in dict.fromkeys(self.positions):
                options = plan.options_at(sublayer.norm)
                change = OverPatches(dim, width, self.frames, skipped, options)
                if position == "attn":
                    plan.join(plan.anatomy.blocks[sublayer.tower][sublayer.block], "before_attn", AddToInput(change))
                else:
                    plan.add_branch(sublayer, AddToStream(change))
        norms = [place.module for place in plan.anatomy.places if place.role == "norm"]
        if self.mean_first and isinstance(plan.model, Classified) and norms:
            plan.join(norms[-1], "mean", MeanOverTime(self.frames))


class OverPatches(nn.Module):
    """Up(DWConv(Down x)) for the patch tokens of (B·T) N D, 0 for the first `skipped` tokens."""

    def __init__(self, dim: int, width: int, frames: int, skipped: int, options: dict[str, Any]) -> None:
        super().__init__()
        self.frames, self.skipped = frames, skipped
        self.down = kaiming_linear(dim, width, options)
        self.conv = DepthwiseOverTime(width, options)
        self.up = kaiming_linear(width, dim, options)

    def forward(self, x: Tensor) -> Tensor:
        inner = self.down(match(x[:, self.skipped :], self.down.weight))
        inner = self.conv(clips_of(inner, self.frames)).flatten(0, 1)
        return nn.functional.pad(self.up(inner), (0, 0, self.skipped, 0))


class MeanOverTime(Graft):
    """x of every frame becomes the mean over its clip: x ← x + factor · (Σₜ xₜ / T − x), for (B·T) N D or (B·T) D."""

    def __init__(self, frames: int) -> None:
        super().__init__()
        self.frames = frames

    def before(self, x: Tensor) -> Tensor:
        clips = clips_of(x, self.frames)
        mean = clips.mean(1, keepdim=True).expand_as(clips).flatten(0, 1)
        return mean if self.factor == 1.0 else torch.lerp(x, mean, self.factor)


class AddToInput(Graft):
    """x ← x + factor · change(x) at what a module receives."""

    def __init__(self, change: nn.Module) -> None:
        super().__init__()
        self.change = change

    def before(self, x: Tensor) -> Tensor:
        return add_weighed(x, self.change(x), self.factor)


class AddToStream(Branch):
    """z ← z + factor · change(z) at the stream z = x + y behind a residual step, joined where y is still apart."""

    def __init__(self, change: nn.Module) -> None:
        super().__init__(change, read=True)

    def add(self, y: Tensor, x: Tensor) -> Tensor:
        return super().add(y, x + y)
