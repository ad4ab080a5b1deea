import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from peft_core.method import Method, Plan
from peft_core.parts.prompts import uniform_prompts
from peft_core.parts.tokens.pieces import Masked, Pieced
from peft_core.values import Count, Rate


@dataclass(frozen=True, kw_only=True)
class E2VPT(Pieced):
    """E²VPT: new prompts before every block as VPT-deep, further keys and values in every attention, and prompts that are pruned.

    Han et al., "E²VPT: An Effective and Efficient Approach for Visual Prompt Tuning", ICCV 2023. Block l receives [cls, γ ζ ⊙
    P_l, patches]; softmax(q [P_kv; K]ᵀ/√d) [P_kv; V], one tensor (key_values, W) for both by default, for each block its own. P
    ~ U(−v, v) as VPT's, P_kv ~ U(−u, u), u = √(6/(n·d)) (Kaiming's of a tensor (heads, n, d)); the frozen model's dropout and
    drop path are off: ChengHan111/E2VPT (7a66e75). 5 and 5; for VTAB-1k 1 to 100 by task there, dropout 0.1.

    Pruning: masks γ (tokens) and ζ (tokens, 16), which all blocks share, are scored after a first training by the mean of their
    signed gradients; the lowest go, and all starts again. The shares are searched there, 0.1 to 0.9 each, so none is pruned by
    default. Piece k holds the entries k, k + 16, k + 32 … as there. Differs: the masks stay 1 in the first training, where they
    train along there; the same start is taken again, there another draw. What is masked stays in the sequence as zeros, as
    there. Where a norm stands before the body, as in ViTs, γ of a token that one block sees acts through the norm's ε alone, so
    its score is close to noise, there too. Not identical at step 0: tokens take part in attention. 92,160 parameters on
    ViT-B/16.

    Args:
        tokens: prompts of each block.
        key_values: n, keys and values of each attention.
        shared: whether keys and values are one tensor.
        dropout: on the prompts, a mask a sample.
    """

    tokens: Count = 5
    key_values: Count = 5
    shared: bool = True
    dropout: Rate = 0.0
    strided: ClassVar[bool] = True
    identity: ClassVar[bool] = False
    needs: ClassVar[tuple[str, ...]] = ("tokens",)
    silences_dropout: ClassVar[bool] = True
    not_mergeable: ClassVar[str | None] = "prompt tokens are part of the sequence, not of a weight."
    vit_b16: ClassVar[tuple[tuple[dict[str, Any], int], ...]] = (({}, 92_160), ({"shared": False}, 138_240))

    @classmethod
    def examples(cls) -> Iterable[Method]:
        yield cls(tokens=3, key_values=2, prune_tokens=0.4, prune_pieces=0.5, pieces=8, passes=1)
        yield cls(tokens=2, key_values=3, shared=False, tower="image")

    def install(self, plan: Plan) -> None:
        for tower, _, path, count in plan.chosen_blocks(self.tokens, 1000):
            stream, options = plan.token_stream(tower), plan.options_at(path)
            masks = self.masks(plan, tower, count, stream.width, options["device"])
            made = Masked(uniform_prompts(count, stream, options), masks)
            plan.add_tokens([path], made, stream, self.dropout, count=count)
        for sublayer, count, _ in plan.sublayers(("attn",), self.key_values, limit=1000):
            made = torch.empty(
                1 if self.shared else 2, count, plan.key_width(sublayer), **plan.options_at(sublayer.body)
            )
            bound = math.sqrt(6 / (count * plan.head_width(sublayer)))
            plan.extend_keys_values(sublayer, Both(made.uniform_(-bound, bound)))

    def score(self, gradient: Tensor) -> Tensor:
        return gradient


class Both(nn.Module):
    """Keys and values of 2 n W, or of 1 n W the same for both."""

    def __init__(self, values: Tensor) -> None:
        super().__init__()
        self.values = nn.Parameter(values)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.values[0], self.values[-1]
