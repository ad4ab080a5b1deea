from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import nn

from peft_core.errors import PeftError
from peft_core.method import Method, Plan
from peft_core.parts.bottleneck import Bottleneck
from peft_core.parts.prefixes import add_prefixes, fold_prefixes
from peft_core.values import Count, Whole


@dataclass(frozen=True, kw_only=True)
class AutoPEFT(Method):
    """AutoPEFT: a serial adapter, a parallel adapter and a prefix, each of one width in all blocks that are on.

    Zhou, Wan, Vulić, Korhonen, "AutoPEFT: Automatic Configuration Search for Parameter-Efficient Fine-Tuning", TACL 2024.
    x ← x + m + Up(relu(Down m)) + Up'(relu(Down' x)), m what the MLP adds, and P_k, P_v (tokens, D) at attention, made by an
    MLP while they train (cambridgeltl/autopeft 572dcaf). `vision_peft auto_peft` searches widths and blocks; Down is
    Kaiming-uniform, Up zero. A prefix takes part in the softmax: not identical at step 0. 2,010,240 parameters on ViT-B/16
    without that MLP.

    Args:
        serial: width of the adapter behind the MLP, 0 for none.
        parallel: width of the one beside it, 0 for none.
        tokens: of the prefix, 0 for none.
        reparameterize: make the prefix by an MLP while it trains.
        hidden: that MLP's width.
    """

    serial: Whole = 48
    parallel: Whole = 48
    tokens: Whole = 12
    reparameterize: bool = True
    hidden: Count = 512
    identity: ClassVar[bool] = False
    not_mergeable: ClassVar[str | None] = "prefixes and bottlenecks are no change of weights."
    vit_b16: ClassVar[tuple[tuple[dict[str, Any], int], ...]] = (
        ({"reparameterize": False}, 2_010_240),
        ({"serial": 96, "parallel": 0, "tokens": 1, "blocks": range(6), "reparameterize": False}, 899_136),
    )

    @classmethod
    def examples(cls) -> Iterable[Method]:
        return cls(serial=8, parallel=4, tokens=2, hidden=5), cls(serial=0, parallel=16, tokens=2, reparameterize=False)

    def install(self, plan: Plan) -> None:
        if not (self.serial or self.parallel or self.tokens):
            raise PeftError(
                "auto_peft got the width 0 for all its modules: give one of serial, parallel and tokens more."
            )
        if self.tokens:
            add_prefixes(plan, self.tokens, self.hidden if self.reparameterize else None)
        for sublayer, width, dim in plan.sublayers(("mlp",), self.serial) if self.serial else ():
            plan.add_behind(sublayer, Bottleneck(dim, width, activation="relu", options=plan.options_at(sublayer.norm)))
        for sublayer, width, dim in plan.sublayers(("mlp",), self.parallel) if self.parallel else ():
            plan.add_branch(sublayer, Bottleneck(dim, width, activation="relu", options=plan.options_at(sublayer.norm)))

    def finish(self, model: nn.Module) -> None:
        """Keeps P_k and P_v in place of what they are made by."""
        if self.tokens:
            fold_prefixes(model, self)
