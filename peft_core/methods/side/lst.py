import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from peft_core.errors import PeftError
from peft_core.grafts.graft import match
from peft_core.method import Method, Plan
from peft_core.parts.transformer import SmallBlock
from peft_core.values import Count, Positive


@dataclass(frozen=True, kw_only=True)
class LST(Method):
    """Ladder side-tuning: s ← block_i(μ_i s + (1 − μ_i) Down_i h_i) beside the frozen blocks; the head reads Up s alone.

    Sung, Cho, Bansal, "LST: Ladder Side-Tuning for Parameter and Memory Efficient Transfer Learning", NeurIPS 2022. h_i is what
    block i gives, detached: the frozen model never runs backward. s starts as Down h₀, h₀ being what the first block
    receives; μ_i = sigmoid(α_i/T), α_i = 0, T = 0.1; block_i is a transformer block of width D/reduction, Up s goes where
    the last block's output went, to the model's own last norm and head. Every fourth block has no rung:
    ylsung/Ladder-Side-Tuning (T5-base: 1, 2, 3, 5, 6, 7, 9, 10, 11). There the side's weights are cut from the frozen ones by
    their Fisher information; here they start at random. 1,819,305 parameters on ViT-B/16.

    Args:
        reduction: of the width D.
        skip: blocks whose index this divides have no rung, but for a model of one block; None: all have.
        temperature: T.
        heads: of a side block, as many as its width allows up to these; a base model's 12, as there. At inference attention
            is most of a ladder's time, and fewer heads take less of it.
    """

    reduction: Count = 8
    skip: Count | None = 4
    temperature: Positive = 0.1
    heads: Count = 12
    identity: ClassVar[bool] = False
    needs: ClassVar[tuple[str, ...]] = ("stream",)
    not_mergeable: ClassVar[str | None] = "a network beside the frozen one is no change of its weights."
    vit_b16: ClassVar[tuple[tuple[dict[str, Any], int], ...]] = (({}, 1_819_305),)

    @classmethod
    def examples(cls) -> Iterable[Method]:
        return (cls(reduction=4, skip=None),)

    def install(self, plan: Plan) -> None:
        for tower, blocks in plan.towers():
            stream = plan.stream(tower)
            chosen = [
                i for _, i, *_ in plan.chosen_blocks(1, 1, tower) if len(blocks) == 1 or not self.skip or i % self.skip
            ]
            if stream.width // self.reduction < 1 or not chosen:
                raise PeftError(f"lst finds no rung of a width above 0: {len(blocks)} blocks, D {stream.width}.")
            options = plan.options_at(blocks[0])
            net = Ladder(stream.width, stream.width // self.reduction, chosen, stream.causal, self, options)
            plan.add_side(blocks, net, blocks[-1], stream)


class Ladder(nn.Module):
    """Features [h₀, …, h_L], each B N D, to Up s."""

    def __init__(self, dim: int, width: int, rungs: list[int], causal: bool, method: LST, options: dict[str, Any]):
        super().__init__()
        self.rungs, self.temperature = rungs, method.temperature
        self.first = nn.Linear(dim, width, **options)
        self.downs = nn.ModuleList(nn.Linear(dim, width, **options) for _ in rungs)
        self.blocks = nn.ModuleList(SmallBlock(width, math.gcd(width, method.heads), causal, options) for _ in rungs)
        self.gates = nn.Parameter(torch.zeros(len(rungs), **options))
        self.up = nn.Linear(width, dim, **options)

    def forward(self, features: list[Tensor]) -> Tensor:
        s = self.first(match(features[0], self.up.weight))
        for i, gate, down, block in zip(self.rungs, self.gates, self.downs, self.blocks, strict=True):
            mu = torch.sigmoid(gate / self.temperature)
            s = block(mu * s + (1 - mu) * down(match(features[i + 1], self.up.weight)))
        return self.up(s)
