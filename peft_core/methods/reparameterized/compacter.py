from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import torch
from torch import nn

from peft_core.errors import PeftError
from peft_core.method import Method, Plan
from peft_core.parts.hypercomplex import HypercomplexBottleneck
from peft_core.values import Count


@dataclass(frozen=True, kw_only=True)
class Compacter(Method):
    """Compacter: bottleneck adapters behind attention and MLP whose matrices are Σ_i A_i ⊗ (s_i t_i), A shared by all.

    Karimi Mahabadi et al., "Compacter: Efficient Low-Rank Hypercomplex Adapter Layers", NeurIPS 2021. n = 4 terms, A (n, n, n)
    is one for down and up of all adapters, s_i t_i of rank 1, y ← y + Up(GELU(Down y)) with biases, and the backbone's norms
    train: rabeehk/compacter. `plus_plus`: behind the MLP alone (Compacter++). A ~ N(0, 1e-4²), s and t Xavier-uniform with gain
    √2, biases zero; the authors' change of some 1e-8 at the start is here exactly none, as the last factor of Up starts at zero
    (`init="compacter"`: theirs). They train by AdamW at 3e-3, reduction 32, 16 or 8 by validation.
    57,088 parameters on ViT-B/16 (28,576 with `plus_plus`), and 38,400 of the norms.

    Args:
        reduction: the bottleneck's width is D/reduction; n divides D and it.
        terms: n.
        rank: of s_i t_i.
        plus_plus: behind the MLP alone.
        activation: gelu_tanh, relu, gelu, silu, quick_gelu or identity.
        norms: whether the backbone's norms train.
        init: "zero", or "compacter", the authors' choice.
    """

    reduction: Count = 32
    terms: Count = 4
    rank: Count = 1
    plus_plus: bool = False
    activation: str = "gelu_tanh"
    norms: bool = True
    init: Literal["zero", "compacter"] = "zero"
    not_mergeable: ClassVar[str | None] = "a bottleneck with an activation is no change of a weight."
    vit_b16: ClassVar[tuple[tuple[dict[str, Any], int], ...]] = (
        ({"norms": False}, 57_088), ({"norms": False, "plus_plus": True}, 28_576),
        ({"norms": False, "reduction": 16}, 58_816), ({"norms": False, "reduction": 8}, 62_272),
    )  # fmt: skip

    @classmethod
    def examples(cls) -> Iterable[Method]:
        small = cls(reduction=4, terms=2)
        return small, replace(small, plus_plus=True, rank=2, norms=False)

    def install(self, plan: Plan) -> None:
        kinds = ("mlp",) if self.plus_plus else ("attn", "cross_attn", "mlp")
        for sublayer, _, dim in plan.sublayers(kinds, 1):
            width, options = dim // self.reduction, plan.options_at(sublayer.norm)
            if dim % self.terms or not width or width % self.terms:
                raise PeftError(
                    f"compacter got {self.terms} terms, which do not divide the width {dim} at {sublayer.body} and the "
                    f"bottleneck's {width}: choose another reduction or fewer terms."
                )

            def made(options: dict[str, Any] = options) -> nn.Parameter:
                return nn.Parameter(torch.empty(self.terms, self.terms, self.terms, **options).normal_(0.0, 1e-4))

            change = HypercomplexBottleneck(dim, width, plan.shared("A", made), rank=self.rank, activation=self.activation,
                                            zero=self.init == "zero", options=options)  # fmt: skip
            plan.add_behind(sublayer, change)
        norms = [role for role in plan.anatomy.roles() if "norm" in role] if self.norms else []
        for place, _ in plan.places(norms) if norms else ():
            module = plan.model.get_submodule(place.module)
            plan.train(place.module, *(name for name in ("weight", "bias") if module._parameters.get(name) is not None))
