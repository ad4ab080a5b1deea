from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import nn

from peft_core.method import Method, Plan
from peft_core.parts.bottleneck import Bottleneck
from peft_core.parts.prefixes import add_prefixes, fold_prefixes
from peft_core.values import Count, Positive, Widths


@dataclass(frozen=True, kw_only=True)
class MAM(Method):
    """Mix-and-match adapter: a prefix at every attention, and beside the MLP x ← x + MLP(norm x) + s·Up(relu(Down x)).

    He et al., "Towards a Unified View of Parameter-Efficient Transfer Learning", ICLR 2022. The prefix P_k, P_v is made by an MLP
    of width 800 while it trains and stands alone afterwards; Down is Kaiming-uniform, Up zero, no norm of its own.
    jxhe/unify-parameter-efficient-tuning (3222ce2): 30 prefix tokens, bottleneck 512, s = 4 on BART; 16, 16 and s = 2 on
    encoders (its script for GLUE), which are the defaults here, trained with AdamW at 1e-4, weight decay 0.1, warm-up 0.06. The
    prefix takes part in the softmax: not identical at step 0. 599,232 parameters on ViT-B/16 without the MLP.

    Args:
        tokens: of the prefix, one number, or one a block where 0 means absent (one number with `reparameterize`).
        bottleneck: width beside the MLP, one number, or one a block where 0 means absent.
        scale: s.
        reparameterize: make the prefix by an MLP while it trains.
        hidden: that MLP's width.
    """

    tokens: Widths = 16
    bottleneck: Widths = 16
    scale: Positive = 2.0
    reparameterize: bool = True
    hidden: Count = 800
    identity: ClassVar[bool] = False
    not_mergeable: ClassVar[str | None] = "a prefix and a branch with an activation are no change of weights."
    vit_b16: ClassVar[tuple[tuple[dict[str, Any], int], ...]] = (
        ({"reparameterize": False}, 599_232),
        ({"tokens": 30, "bottleneck": 512, "reparameterize": False}, 10_005_504),
    )

    @classmethod
    def examples(cls) -> Iterable[Method]:
        return cls(tokens=2, bottleneck=8, hidden=5), cls(tokens=2, bottleneck=8, reparameterize=False, tower="image")

    def install(self, plan: Plan) -> None:
        add_prefixes(plan, self.tokens, self.hidden if self.reparameterize else None)
        for sublayer, width, dim in plan.sublayers(("mlp",), self.bottleneck):
            options = plan.options_at(sublayer.norm)
            plan.add_branch(sublayer, Bottleneck(dim, width, activation="relu", scale=self.scale, options=options))

    def finish(self, model: nn.Module) -> None:
        """Keeps P_k and P_v in place of what they are made by."""
        fold_prefixes(model, self)
