import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from peft_core import lifecycle
from peft_core.grafts.attention import KeysValues
from peft_core.grafts.shared import Reference
from peft_core.method import Method, Plan
from peft_core.values import Count, Widths


@dataclass(frozen=True, kw_only=True)
class Prefix(Method):
    """Prefix tuning: every attention sees learnt keys and values in front of its own, softmax(q [P_k; K]ᵀ/√d) [P_v; V].

    Li and Liang, "Prefix-Tuning: Optimizing Continuous Prompts for Generation", ACL 2021; on ViTs as in He et al., ICLR 2022.
    P_k, P_v (tokens, W) ~ N(0, 1), W the width of the layer's keys. With `reparameterize` they are W₂ tanh(W₁ E + b₁) + b₂
    while they train, E (tokens, D) ~ N(0, 1) and W₁ (m, D) shared by all layers, W₂ (2W, m) each layer's own (the rows of
    the one matrix of XiangLi1999/PrefixTuning), and plain P_k, P_v when training has ended. Rotary positions do not turn
    them, masks do not hide them. They take part in the softmax: not identical at step 0, not even at zero.
    10 tokens: 184,320 parameters on ViT-B/16, 9,857,024 while training with m = 512.

    Args:
        tokens: one number, or one a block where 0 means absent (one number with `reparameterize`).
        reparameterize: train them through an MLP.
        hidden: m.
    """

    tokens: Widths = 10
    reparameterize: bool = False
    hidden: Count = 512
    identity: ClassVar[bool] = False
    not_mergeable: ClassVar[str | None] = "keys and values that stand beside the picture's are no change of a weight."
    vit_b16: ClassVar[tuple[tuple[dict[str, Any], int], ...]] = (({}, 184_320), ({"reparameterize": True}, 9_857_024))

    @classmethod
    def examples(cls) -> Iterable[Method]:
        return cls(tokens=3), cls(tokens=2, reparameterize=True, hidden=5)

    def install(self, plan: Plan) -> None:
        for sublayer, count, dim in plan.sublayers(("attn", "cross_attn"), self.tokens, limit=1000):
            options, width = plan.options_at(sublayer.body), plan.key_width(sublayer)
            make: nn.Module = Table(torch.randn(2, count, width, **options))
            if self.reparameterize:
                # E and W₁ are one for all layers of a width; a U shape's layers have several
                table = plan.shared(f"E_{dim}_{count}", partial(_normal, count, dim, options))
                first = plan.shared(f"W1_{dim}", partial(nn.Linear, dim, self.hidden, **options))
                make = ByMLP(table, first, self.hidden, width, options)
            plan.extend_keys_values(sublayer, make)

    def finish(self, model: nn.Module) -> None:
        """Keeps P_k and P_v in place of what they are made by."""
        if self.reparameterize:
            for graft in lifecycle.own_grafts(model, self, KeysValues):
                graft.make = Table(torch.stack(graft.make(None)))
            lifecycle.forget_shared(model, self)
            lifecycle.adaptation_of(model, self).method = dataclasses.replace(self, reparameterize=False)


def _normal(rows: int, columns: int, options: dict[str, Any]) -> nn.Parameter:
    return nn.Parameter(torch.randn(rows, columns, **options))


class Table(nn.Module):
    """P_k and P_v as they are, 2 P W."""

    def __init__(self, values: Tensor) -> None:
        super().__init__()
        self.values = nn.Parameter(values.detach().clone())

    def forward(self, x: Tensor | None) -> tuple[Tensor, ...]:
        return self.values.unbind(0)


class ByMLP(nn.Module):
    """P_k and P_v = W₂ tanh(W₁ E + b₁) + b₂, each P W."""

    def __init__(self, table: Reference, first: Reference, hidden: int, width: int, options: dict[str, Any]) -> None:
        super().__init__()
        self.shared = (table, first)
        self.second = nn.Linear(hidden, 2 * width, **options)

    def forward(self, x: Tensor | None) -> tuple[Tensor, ...]:
        table, first = (found() for found in self.shared)
        return self.second(torch.tanh(first(table))).chunk(2, -1)
