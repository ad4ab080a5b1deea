from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from peft_core.method import Method, Plan
from peft_core.parts.bottleneck import Bottleneck
from peft_core.parts.input_map import InputMap
from peft_core.values import Positive, Rate, Widths


@dataclass(frozen=True, kw_only=True)
class Adapter(Method):
    """Bottleneck adapters: y ← y + s·Up(act(Down y)) at what a residual step adds, or beside the MLP.

    `houlsby`: after attention and after the MLP (Houlsby et al., "Parameter-Efficient Transfer Learning for NLP", ICML 2019).
    `pfeiffer`: after the MLP (Pfeiffer et al., "AdapterFusion", EACL 2021).
    `parallel`: beside the MLP, x ← x + MLP(norm2(x)) + s·Up(act(Down x)) (He et al., "Towards a Unified View of
    Parameter-Efficient Transfer Learning", ICLR 2022).
    `series`: before the MLP, behind its norm, x ← x + s·Up(act(Down x)); `linears`: beside each of the MLP's linears, y ← W x +
    s·Up(act(Down x)) (Hu et al., "LLM-Adapters", EMNLP 2023, AGI-Edgerunners/LLM-Adapters 8166572: width 256, tanh, no biases,
    both weights N(0, 0.02²), AdamW at 3e-4; presets adapter_llm_series and adapter_llm_parallel).
    y is what reaches the stream, behind layer scale and drop path, as in visinf/adapter_plus; KMnP/vpt's, which has no layer
    scale, stands before drop path: the same but for training with it.
    Down is Kaiming-uniform and Up zero: identity at step 0, not dead as with both zero (with `init="normal"` no identity). On
    ViT-B/16 at 8: 156,768 (pfeiffer, parallel), 313,536 (houlsby); LLM-Adapters' 4,718,592 (series), 23,592,960 (linears).

    Args:
        bottleneck: one width h, or one a block where 0 means absent.
        activation: relu, gelu, silu, quick_gelu, tanh or identity.
        scale: s.
        bias: whether Down and Up have biases.
        init: "zero", or "normal", both weights N(0, 0.02²).
    """

    bottleneck: Widths = 8
    position: Literal["houlsby", "pfeiffer", "parallel", "series", "linears"] = "pfeiffer"
    activation: str = "gelu"
    scale: Positive = 1.0
    dropout: Rate = 0.0
    bias: bool = True
    init: Literal["zero", "normal"] = "zero"
    vit_b16: ClassVar[tuple[tuple[dict[str, Any], int], ...]] = (
        ({}, 156_768), ({"position": "houlsby"}, 313_536),
        ({"position": "series", "bottleneck": 256, "bias": False}, 4_718_592),
        ({"position": "linears", "bottleneck": 256, "bias": False}, 23_592_960),
    )  # fmt: skip
    not_mergeable: ClassVar[str | None] = "a bottleneck with an activation is no change of a weight."

    @property
    def identity(self) -> bool:  # type: ignore[override]
        return self.init == "zero"

    @classmethod
    def examples(cls) -> Iterable[Method]:
        behind = tuple(cls(bottleneck=4, position=position) for position in ("houlsby", "pfeiffer", "parallel"))  # type: ignore
        return (
            *behind,
            cls(bottleneck=8, position="series", init="normal", scale=1000.0),
            cls(position="linears", bias=False),
        )

    def install(self, plan: Plan) -> None:
        if self.position == "linears":
            for place, width in plan.places(("fc1", "fc2"), self.bottleneck):
                out, dim = plan.shape(place)
                plan.add_beside(place, self._made(dim, width, out, plan.options_at(place.module)))
            return
        kinds = ("attn", "cross_attn", "mlp") if self.position == "houlsby" else ("mlp",)
        for sublayer, width, dim in plan.sublayers(kinds, self.bottleneck):
            change = self._made(dim, width, dim, plan.options_at(sublayer.norm))
            if self.position == "series":
                plan.join(sublayer.into[0] if len(sublayer.into) == 1 else sublayer.body, "before", InputMap(change))
            elif self.position == "parallel":
                plan.add_branch(sublayer, change)
            else:
                plan.add_behind(sublayer, change)

    def _made(self, dim: int, width: int, out: int, options: dict[str, Any]) -> Bottleneck:
        return Bottleneck(dim, width, out=out, activation=self.activation, scale=self.scale, dropout=self.dropout,
                          bias=self.bias, std=0.02 if self.init == "normal" else None, tails=True, options=options)  # fmt: skip
