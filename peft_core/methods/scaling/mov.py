from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from peft_core.anatomies import Place
from peft_core.errors import PeftError
from peft_core.grafts.graft import Delta, match
from peft_core.method import Method, Plan
from peft_core.parts.input_map import InputMap
from peft_core.values import Count


@dataclass(frozen=True, kw_only=True)
class MoV(Method):
    """Mixture of vectors: (IA)³ whose vectors are a soft mixture for each token, y ← y ⊙ Σ_e p_e(y) l_e, p(y) = softmax(R y).

    Zadouri et al., "Pushing Mixture of Experts to the Limit: Extremely Parameter Efficient MoE for Instruction Tuning", ICLR
    2024. At k and v each head has E vectors of its own width d and all heads share one router R (E, d); in the feed-forward
    fc2's input has E vectors and a router of its whole width. R ~ N(0, 0.02²) without bias, l_e = 1: identity at step 0;
    E = 30, Adafactor at a constant 3e-4: for-ai/parameter-efficient-moe (e2683fe), written for T5. Here l_e − 1 is what trains
    and is saved, as the probabilities sum to 1: weight decay pulls towards the frozen model. 2,810,880 parameters on ViT-B/16.

    Args:
        experts: E.
        targets: roles whose outputs are scaled; k, v, cross_k and cross_v where None.
        feedforward: roles whose inputs are scaled.
    """

    experts: Count = 30
    targets: Sequence[str] | None = None
    feedforward: Sequence[str] = ("fc2",)
    needs: ClassVar[tuple[str, ...]] = ("inputs",)
    not_mergeable: ClassVar[str | None] = "its factors depend on the token."
    vit_b16: ClassVar[tuple[tuple[dict[str, Any], int], ...]] = (({}, 2_810_880), ({"experts": 10}, 936_960))

    @classmethod
    def examples(cls) -> Iterable[Method]:
        return (cls(experts=3),)

    def install(self, plan: Plan) -> None:
        known = plan.anatomy.roles()
        outputs = [r for r in ("k", "v", "cross_k", "cross_v") if r in known] if self.targets is None else self.targets
        for place, _ in plan.places(outputs, change=MixedOutput) if outputs else ():
            width, _ = plan.shape(place)
            heads = heads_at(plan, place, width)
            mixture = Mixture(heads, width // heads, self.experts, plan.options_at(place.module))
            plan.change_weight(place, MixedOutput(mixture, place.rows))
        for place, _ in plan.places(self.feedforward, change=MixedOutput) if self.feedforward else ():
            mixture = Mixture(1, plan.shape(place)[1], self.experts, plan.options_at(place.module))
            plan.join(place.module, place.role, InputMap(mixture))


class Mixture(nn.Module):
    """x (…, heads · d) -> x ⊙ Σ_e p_e (l_e − 1), p = softmax(R x) of each head."""

    def __init__(self, heads: int, width: int, experts: int, options: dict[str, Any]) -> None:
        super().__init__()
        self.vectors = nn.Parameter(torch.zeros(heads, experts, width, **options))
        self.router = nn.Parameter(torch.empty(experts, width, **options).normal_(std=0.02))

    def forward(self, x: Tensor) -> Tensor:
        x = match(x, self.router).unflatten(-1, (len(self.vectors), -1))
        share = (x @ self.router.t()).softmax(-1)
        return (x * torch.einsum("...he,hed->...hd", share.to(x.dtype), self.vectors.to(x.dtype))).flatten(-2)


class MixedOutput(Delta):
    """y ← y + factor · mixture(y) for rows of what a linear gives."""

    maps_output = True
    reads_input = True

    def __init__(self, mixture: nn.Module, rows: tuple[int, int] | None) -> None:
        super().__init__(rows)
        self.mixture = mixture

    @classmethod
    def accepts(cls, module: nn.Module, weight: Tensor, rows: tuple[int, int] | None) -> str | None:
        return (
            None
            if weight.dim() == 2 and not isinstance(module, nn.Embedding)
            else "it scales what linears read or give"
        )

    def forward(self, weight: Tensor) -> Tensor:
        raise PeftError("mov depends on the token: what wants its changed weight cannot stand on it.")

    def on_output(self, y: Tensor) -> Tensor:
        return self.mixture(y) * self.factor


def heads_at(plan: Plan, place: Place, width: int) -> int:
    """Into how many heads an attention splits what a place gives."""
    module = plan.model.get_submodule(place.module)
    owner = module if hasattr(module, "head_dim") else plan.model.get_submodule(place.module.rpartition(".")[0])
    size = getattr(owner, "head_dim", None)
    heads = width // size if isinstance(size, int) else next(
        (n for name in ("num_heads", "heads") if isinstance(n := getattr(owner, name, None), int)), 1
    )  # fmt: skip
    return heads if width % heads == 0 else 1
