from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar, Literal

from peft_core.method import Method, Plan
from peft_core.parts.bottleneck import Bottleneck
from peft_core.values import Positive, Rate, Widths


@dataclass(frozen=True, kw_only=True)
class Adapter(Method):
    """Bottleneck adapters: y ← y + s·Up(act(Down y)) at what a residual step adds, or beside the MLP.

    `houlsby`: after attention and after the MLP (Houlsby et al., "Parameter-Efficient Transfer Learning for NLP", ICML 2019).
    `pfeiffer`: after the MLP (Pfeiffer et al., "AdapterFusion", EACL 2021).
    `parallel`: beside the MLP, x ← x + MLP(norm2(x)) + s·Up(act(Down x)) (He et al., "Towards a Unified View of
    Parameter-Efficient Transfer Learning", ICLR 2022).
    y is what reaches the stream, behind layer scale and drop path, as in visinf/adapter_plus; KMnP/vpt's, which has no layer
    scale, stands before drop path: the same but for training with it.
    Down is Kaiming-uniform and Up zero: identity at step 0, not dead as with both zero. On ViT-B/16 at 8: 156,768
    (pfeiffer, parallel), 313,536 (houlsby).

    Args:
        bottleneck: one width h, or one a block where 0 means absent.
        activation: relu, gelu, silu, quick_gelu or identity.
        scale: s.
    """

    bottleneck: Widths = 8
    position: Literal["houlsby", "pfeiffer", "parallel"] = "pfeiffer"
    activation: str = "gelu"
    scale: Positive = 1.0
    dropout: Rate = 0.0
    not_mergeable: ClassVar[str | None] = "a bottleneck with an activation is no change of a weight."

    @classmethod
    def examples(cls) -> Iterable[Method]:
        return tuple(cls(bottleneck=4, position=position) for position in ("houlsby", "pfeiffer", "parallel"))

    def install(self, plan: Plan) -> None:
        kinds = ("attn", "cross_attn", "mlp") if self.position == "houlsby" else ("mlp",)
        for sublayer, width, dim in plan.sublayers(kinds, self.bottleneck):
            change = Bottleneck(dim, width, activation=self.activation, scale=self.scale, dropout=self.dropout,
                                options=plan.options_at(sublayer.norm))  # fmt: skip
            if self.position == "parallel":
                plan.add_branch(sublayer, change)
            else:
                plan.add_behind(sublayer, change)
