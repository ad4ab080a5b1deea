from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn

from peft_core.method import Method, Plan
from peft_core.parts.tokens.added import Added
from peft_core.values import Count, Rate


@dataclass(frozen=True, kw_only=True)
class PrefixPropagation(Method):
    """Prefix propagation: tokens run through all blocks, and before each a learnt P_l (tokens, D) is added to them.

    Li et al., "Prefix-Propagation: Parameter-Efficient Tuning for Long Sequences", ACL 2023. They start at zero, so the first
    block receives P_0; ordinary attention, which they take part in: not identical at step 0. P_l ~ N(0, 1), 8 tokens, dropout
    0.1 on each P_l (a mask a sample): MonliH/prefix-propagation (fc868c5), where they stand before the class token; behind it
    here, the same to attention. It is deep VPT with adding in place of replacing, at half of a prefix's parameters:
    73,728 on ViT-B/16.

    Args:
        tokens: how many.
        dropout: on what is added.
    """

    tokens: Count = 8
    dropout: Rate = 0.1
    identity: ClassVar[bool] = False
    needs: ClassVar[tuple[str, ...]] = ("tokens",)
    not_mergeable: ClassVar[str | None] = "prompt tokens are part of the sequence, not of a weight."
    vit_b16: ClassVar[tuple[tuple[dict[str, Any], int], ...]] = (({}, 73_728), ({"tokens": 10}, 92_160))

    @classmethod
    def examples(cls) -> Iterable[Method]:
        return (cls(tokens=2, dropout=0.0),)

    def install(self, plan: Plan) -> None:
        for tower, run in plan.runs():
            stream = plan.token_stream(tower)
            paths = [path for _, _, path, _ in plan.chosen_blocks(self.tokens, 1000, tower)]
            first, *others = (
                nn.Parameter(torch.randn(self.tokens, stream.width, **plan.options_at(path))) for path in paths
            )
            plan.add_tokens(run, first, stream, self.dropout)
            for path, values in zip(paths[1:], others, strict=True):
                plan.join(path, "propagation", Added(values, self.tokens, stream, self.dropout))
