from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar, Literal

from peft_core.method import Method, Plan
from peft_core.parts.bottleneck import Bottleneck
from peft_core.values import Rate, Widths


@dataclass(frozen=True, kw_only=True)
class AdapterPlus(Method):
    """Adapter+: x ← block(x), then x ← x + drop_path(γ ⊙ Up(GELU(Down x))), γ (D) starting at 1.

    Steitz and Roth, "Adapters Strike Back", CVPR 2024; post position, channel scale, drop path 0.1: visinf/adapter_plus.
    There both weights start at N(0, 0.01²) truncated at 2σ (`init="houlsby"`, no identity at step 0); here, by default, Down is
    Kaiming-uniform and Up zero.
    165,984 parameters on ViT-B/16 at 8.

    Args:
        bottleneck: one width h, or one a block where 0 means absent.
        drop_path: probability that a sample goes without the adapter in training.
        init: "zero", or "houlsby", the paper's choice.
    """

    bottleneck: Widths = 8
    drop_path: Rate = 0.1
    init: Literal["zero", "houlsby"] = "zero"
    not_mergeable: ClassVar[str | None] = "a bottleneck with an activation is no change of a weight."

    @classmethod
    def examples(cls) -> Iterable[Method]:
        return (cls(bottleneck=4),)

    def install(self, plan: Plan) -> None:
        for sublayer, width, dim in plan.sublayers(("mlp",), self.bottleneck):
            block = sublayer.layer or plan.anatomy.blocks[sublayer.tower][sublayer.block]
            change = Bottleneck(dim, width, activation="gelu", channel_scale=True, drop_path=self.drop_path,
                                std=0.01 if self.init == "houlsby" else None, options=plan.options_at(sublayer.norm))  # fmt: skip
            plan.add_to_output(block, change, plan.stream_of(sublayer).output)
