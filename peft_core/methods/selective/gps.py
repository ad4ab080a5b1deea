from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from peft_core.errors import PeftError
from peft_core.lifecycle import named_losses
from peft_core.method import Method, Plan
from peft_core.parts.selection.budget import largest_a_row, once
from peft_core.parts.selection.importance import gradient_scores, has_bias, sites_of
from peft_core.parts.sparse import OfMatrices
from peft_core.values import Count


@dataclass(frozen=True, kw_only=True)
class GPS(Method):
    """GPS: of every neuron the k inputs of the largest gradient train, with all biases of these layers and the head.

    Zhang et al., "Gradient-based Parameter Selection for Efficient Fine-Tuning", CVPR 2024. The score is |Σ ∂L/∂w| over the
    training set, the mask each row's k largest; W' = W + scatter(values), values starting at 0, norms frozen. As in
    FightingFighting/GPS L is the supervised contrastive loss on two augmented views of each picture, which says nothing of a
    head that is still random; a training loop that offers no such loss uses the task's. k = 1 on ViT-B/16: 83,712 weights and
    83,712 biases, patch embedding included.

    Args:
        per_row: k.
        contrastive: choose by the contrastive loss where the training loop offers it (`lifecycle.Losses`).
        targets: roles or groups; every matrix and convolution that has a role where None.
    """

    per_row: Count = 1
    contrastive: bool = True
    targets: Sequence[str] | None = None
    vit_b16: ClassVar[tuple[tuple[dict[str, Any], int], ...]] = (({}, 167_424), ({"per_row": 2}, 251_136))

    @classmethod
    def examples(cls) -> Iterable[Method]:
        return (cls(per_row=2),)

    def install(self, plan: Plan) -> None:
        for place in once(plan, self.targets, OfMatrices):
            out, inner = plan.shape(place)
            if self.per_row > inner:
                raise PeftError(f"gps got per_row {self.per_row}, above the {inner} inputs of a row at {place.module}.")
            of_bias = torch.arange(out) if has_bias(plan, place) else None
            change = OfMatrices(plan.stock(place), place.rows, (out, inner), self.per_row * out, of_bias)
            plan.change_weight(place, change)

    def prepare(self, model: nn.Module, losses: Iterable[Tensor]) -> None:
        given = named_losses(losses, "contrastive") if self.contrastive else losses
        for site, (score, *_) in zip(
            sites_of(model, self), gradient_scores(model, self, given, torch.clone), strict=True
        ):
            site.graft.choose(largest_a_row(score.abs(), self.per_row))
