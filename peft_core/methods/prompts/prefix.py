from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import nn

from peft_core.method import Method, Plan
from peft_core.parts.prefixes import add_prefixes, fold_prefixes
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
        add_prefixes(plan, self.tokens, self.hidden if self.reparameterize else None)

    def finish(self, model: nn.Module) -> None:
        """Keeps P_k and P_v in place of what they are made by."""
        fold_prefixes(model, self)
