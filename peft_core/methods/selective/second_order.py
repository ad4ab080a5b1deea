from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor, nn

from peft_core.method import Method, Plan
from peft_core.parts.selection.budget import largest, once
from peft_core.parts.selection.importance import gradient_scores, has_bias, sites_of
from peft_core.parts.sparse import ChosenByValue
from peft_core.values import Count, Range


@dataclass(frozen=True, kw_only=True)
class SecondOrder(Method):
    """Second-order approximation (SAM): in each tensor the entries of the largest summed gradient train.

    Fu et al., "On the Effectiveness of Parameter-Efficient Fine-Tuning", AAAI 2023. Under a budget, the best entries of a
    quadratic model of the loss with equal curvatures are those of the largest |Σ ∂L/∂w|, summed over batches without a step
    between: as in fuzihaofzh/AnalyzeParameterEfficientFinetune there is neither a curvature nor a square, and 0.5 % of each
    tensor is taken after 500 batches. W' = W + scatter(values), values starting at 0. 428,160 parameters on ViT-B/16.

    Args:
        share: of each tensor's entries, rounded; one at the least.
        batches: how many are looked at.
        targets: roles or groups; every weight that has a role, norms included, where None.
        biases: whether entries of the biases train too.
    """

    share: Annotated[float, Range(above=0, most=1)] = 0.005
    batches: Count = 500
    targets: Sequence[str] | None = None
    biases: bool = True
    vit_b16: ClassVar[tuple[tuple[dict[str, Any], int], ...]] = (
        ({"targets": ("attn", "mlp"), "biases": False}, 424_656),
    )

    @classmethod
    def examples(cls) -> Iterable[Method]:
        return (cls(share=0.05),)

    def install(self, plan: Plan) -> None:
        for place in once(plan, self.targets, ChosenByValue):
            out, inner = plan.shape(place)
            of_bias = self._count(out) if self.biases and has_bias(plan, place) else None
            change = ChosenByValue(plan.stock(place), place.rows, (out, inner), self._count(out * inner), of_bias)
            plan.change_weight(place, change)

    def _count(self, size: int) -> int:
        return max(1, int(self.share * size + 0.5))

    def prepare(self, model: nn.Module, losses: Iterable[Tensor]) -> None:
        scores = gradient_scores(model, self, losses, torch.clone, self.batches)
        for site, parts in zip(sites_of(model, self), scores, strict=True):
            site.graft.choose(*(largest([part.abs()], self._count(part.numel()))[0] for part in parts))
