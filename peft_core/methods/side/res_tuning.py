from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

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

    Args:
        bottleneck: h.
    """

    bottleneck: Count = 32
    identity: ClassVar[bool] = False
    needs: ClassVar[tuple[str, ...]] = ("stream",)
    not_mergeable: ClassVar[str | None] = "a network beside the frozen one is no change of its weights."
    vit_b16: ClassVar[tuple[tuple[dict[str, Any], int], ...]] = (({}, 1_198_848),)

    @classmethod
    def examples(cls) -> Iterable[Method]:
        return (cls(bottleneck=4),)

    def install(self, plan: Plan) -> None:
        for tower, blocks in plan.towers():
            stream = plan.stream(tower)
            stems = [index for _, index, *_ in plan.chosen_blocks(1, 1, tower)]
            if not stems:
                continue
            net = Bypass(stream.width, self.bottleneck, stems, plan.options_at(blocks[0]))
            plan.add_side(blocks, net, blocks[-1], stream)


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
