from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from peft_core.anatomies import Anatomy, Stream
from peft_core.errors import PeftError
from peft_core.grafts.graft import match
from peft_core.method import Method, Plan
from peft_core.values import Count


@dataclass(frozen=True, kw_only=True)
class ResTuning(Method):
    """Res-Tuning-Bypass: b ← L_i(h_i) + V_i(b) beside the frozen blocks, whose last b goes where the last block's output went.

    Jiang et al., "Res-Tuning: A Flexible and Efficient Tuning Paradigm via Unbinding Tuner from Backbone", NeurIPS 2023. h_i is
    what block i gives, detached: the frozen model never runs backward; b starts as what the first block receives. A tuner is T(x)
    = x + W₂ gelu(W₁ x + b₁) + b₂ with W₁ (h, D), W₂ (D, h), lateral and vertical ones alike. Weights are Xavier-uniform, biases
    N(0, 1e-6²), h = 32: modelscope/ms-swift (003f77b), as the authors' own repository is not to be had; there the weights of the
    last block's tuners may start at zero, which makes b a plain sum of all features, not the model's own. Not identical at
    step 0. 1,198,848 parameters on ViT-B/16.
    On a UNet, as in that repository's example for Stable Diffusion: b starts as what the middle block receives, its stems are
    what the middle and up blocks give, and between two of them b takes the next one's size (nearest neighbour) and channels
    (a 3 × 3 convolution). A tuner is x + W₂ gelu(W₁ x) in `heads` groups of channels that share W₁ and W₂, `factor` times as wide
    inside, Kaiming-uniform (a = √5) with biases from N(0, 1); convolutions and the last block's W₂ start at zero, so that b
    ends as what the last block gave: identity at step 0. 41,431,520 parameters on SD 1.5's UNet.

    Args:
        bottleneck: h; not used on UNets.
        heads: of a UNet's tuners.
        factor: likewise.
    """

    bottleneck: Count = 32
    heads: Count = 4
    factor: Count = 2
    identity: ClassVar[bool] = False
    needs: ClassVar[tuple[str, ...]] = ("features",)
    not_mergeable: ClassVar[str | None] = "a network beside the frozen one is no change of its weights."
    vit_b16: ClassVar[tuple[tuple[dict[str, Any], int], ...]] = (({}, 1_198_848),)

    @classmethod
    def examples(cls) -> Iterable[Method]:
        return (cls(bottleneck=4),)

    def identical(self, anatomy: Anatomy) -> bool:
        return bool(anatomy.rises)

    def install(self, plan: Plan) -> None:
        if plan.anatomy.rises:
            self._beside_rising(plan)
            return
        for tower, blocks in plan.towers():
            stream = plan.stream(tower)
            stems = [index for _, index, *_ in plan.chosen_blocks(1, 1, tower)]
            if not stems:
                continue
            net = Bypass(stream.width, self.bottleneck, stems, plan.options_at(blocks[0]))
            plan.add_side(blocks, net, blocks[-1], stream)

    def _beside_rising(self, plan: Plan) -> None:
        channels = plan.anatomy.rises
        paths = [path for path in channels if self.blocks is None or plan.block_at(path)[0] in self.blocks]
        if len(paths) < len(channels):
            raise PeftError("res_tuning stands beside all blocks of a UNet's way up: leave blocks out.")
        if odd := [width for width in channels.values() if width % self.heads]:
            raise PeftError(f"res_tuning cannot split {odd[0]} channels into {self.heads} heads: give another number.")
        net = Rising(list(channels.values()), self.heads, self.factor, plan.options_at(paths[0]))
        plan.add_side(paths, net, paths[-1], Stream(channels[paths[-1]], arg="hidden_states"))


class Tuner(nn.Module):
    """x + W₂ gelu(W₁ x + b₁) + b₂."""

    def __init__(self, dim: int, width: int, options: dict[str, Any]) -> None:
        super().__init__()
        self.down, self.up = nn.Linear(dim, width, **options), nn.Linear(width, dim, **options)
        for layer in (self.down, self.up):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.normal_(layer.bias, std=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.up(F.gelu(self.down(x)))


class Bypass(nn.Module):
    """Features [h₀, …, h_L], each B N D, to b; h₀ is what the first block receives."""

    def __init__(self, dim: int, width: int, stems: list[int], options: dict[str, Any]) -> None:
        super().__init__()
        self.stems = stems
        self.lateral = nn.ModuleList(Tuner(dim, width, options) for _ in stems)
        self.vertical = nn.ModuleList(Tuner(dim, width, options) for _ in stems)

    def forward(self, features: list[Tensor]) -> Tensor:
        first: Any = self.lateral[0]
        weight: Tensor = first.down.weight
        b = match(features[0], weight)
        for index, lateral, vertical in zip(self.stems, self.lateral, self.vertical, strict=True):
            b = lateral(match(features[index + 1], weight)) + vertical(b)
        return b


class Grouped(nn.Module):
    """x + W₂ gelu(W₁ x + b₁) + b₂ on B C H W, in groups of channels c, c + heads …, which share the weights."""

    def __init__(self, channels: int, heads: int, factor: int, last: bool, options: dict[str, Any]) -> None:
        super().__init__()
        width, self.heads = channels // heads, heads
        self.down, self.up = nn.Linear(width, factor * width, **options), nn.Linear(factor * width, width, **options)
        for layer in (self.down, self.up):
            nn.init.normal_(layer.bias)
        if last:
            nn.init.zeros_(self.up.weight)
            nn.init.zeros_(self.up.bias)

    def forward(self, x: Tensor) -> Tensor:
        groups = x.movedim(1, -1).unflatten(-1, (-1, self.heads)).transpose(-1, -2)
        change = self.up(F.gelu(self.down(groups)))
        return x + change.transpose(-1, -2).flatten(-2).movedim(-1, 1)


class Rising(nn.Module):
    """Pictures [what the narrowest block receives, what each block on the way up gives] to b, of the last one's form."""

    def __init__(self, channels: list[int], heads: int, factor: int, options: dict[str, Any]) -> None:
        super().__init__()
        ends = [number + 1 == len(channels) for number in range(len(channels))]
        make = partial(Grouped, heads=heads, factor=factor, options=options)
        self.lateral = nn.ModuleList(make(c, last=end) for c, end in zip(channels, ends, strict=True))
        self.vertical = nn.ModuleList(make(c, last=end) for c, end in zip(channels, ends, strict=True))
        pairs = zip(channels, channels[1:], strict=False)
        self.grow = nn.ModuleList(nn.Conv2d(one, other, 3, padding=1, **options) for one, other in pairs)
        for layer in self.grow:
            for parameter in layer.parameters():
                nn.init.zeros_(parameter)

    def forward(self, features: list[Tensor]) -> Tensor:
        first: Any = self.grow[0]
        b, *stems = (match(each, first.weight) for each in features)
        for number, (stem, lateral, vertical) in enumerate(zip(stems, self.lateral, self.vertical, strict=True)):
            b = lateral(stem) + vertical(b)
            if number < len(self.grow):
                b = self.grow[number](F.interpolate(b, stems[number + 1].shape[2:], mode="nearest"))
        return b
