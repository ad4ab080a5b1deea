from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from peft_core.grafts.graft import match
from peft_core.method import Method, Plan
from peft_core.parts.prefixes import KINDS, Table
from peft_core.values import Widths


@dataclass(frozen=True, kw_only=True)
class APT(Method):
    """Adaptive prefix tuning: prefixes whose tokens are weighed by the picture and whose layers by a number each.

    Zhang et al., "Towards Adaptive Prefix Tuning for Parameter-Efficient Language Model Fine-tuning", ACL 2023, of which there
    is no code: built from its idea. softmax(q [λ α ⊙ P_k; K]ᵀ/√d) [λ α ⊙ P_v; V] with α = σ(W h), W (tokens, D), and λ a
    number, of each layer; P_k, P_v (tokens, width of its keys) ~ N(0, 1) as prefix tuning's, λ = 1, W as torch makes linears. h
    is the class token of what the attention receives, behind its norm (the paper's comes from the layer before, as the stream
    is), and the mean of its tokens where there is none. The paper takes P-tuning v2's lengths; 10 here: 276,492 parameters on
    ViT-B/16. Not identical at step 0: prefixes take part in the softmax.

    Args:
        tokens: one number, or one a block where 0 means absent.
    """

    tokens: Widths = 10
    identity: ClassVar[bool] = False
    not_mergeable: ClassVar[str | None] = "keys and values that stand beside the picture's are no change of a weight."
    vit_b16: ClassVar[tuple[tuple[dict[str, Any], int], ...]] = (({}, 276_492),)

    @classmethod
    def examples(cls) -> Iterable[Method]:
        return (cls(tokens=3),)

    def install(self, plan: Plan) -> None:
        for sublayer, count, dim in plan.sublayers(KINDS, self.tokens, limit=1000):
            options = plan.options_at(sublayer.body)
            table = Table(torch.randn(2, count, plan.key_width(sublayer), **options))
            made = Weighed(table, count, dim, plan.stream_of(sublayer).prefix > 0, options)
            plan.extend_keys_values(sublayer, made)


class Weighed(nn.Module):
    """λ σ(W h) ⊙ P_k and P_v, each B P W."""

    def __init__(self, make: nn.Module, count: int, dim: int, first: bool, options: dict[str, Any]) -> None:
        super().__init__()
        self.make, self.first = make, first
        self.gate = nn.Linear(dim, count, bias=False, **options)
        self.layer = nn.Parameter(torch.ones((), **options))

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        state = match(x[:, 0] if self.first else x.mean(1), self.gate.weight)
        weight = self.layer * torch.sigmoid(self.gate(state)).unsqueeze(-1)
        return tuple(weight * values for values in self.make(x))
