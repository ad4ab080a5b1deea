from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from peft_core.method import Method, Plan
from peft_core.parts.selection.budget import Budgeted, allot, entries_of, largest, once
from peft_core.parts.sparse import ChosenByValue


@dataclass(frozen=True, kw_only=True)
class PaFi(Budgeted):
    """PaFi: the weights that are smallest in size train, a few of the whole model, the same for every task.

    Liao et al., "Parameter-Efficient Fine-Tuning without Introducing New Latency", ACL 2023: one threshold on |W| over all
    weights, chosen once and without data; W' = W + scatter(values), values starting at 0. Its code was never released and
    its shares could not be confirmed: this is built from the idea, and 0.5 % is what FISH masks take. Biases take no part. Norms
    may, and do not: their weights lie near 1. Weights that are exactly 0 (padding, pruned ones) would all be the smallest and
    come last. 424,673 parameters on ViT-B/16's linears.
    """

    vit_b16: ClassVar[tuple[tuple[dict[str, Any], int], ...]] = (
        ({"targets": ("attn", "mlp")}, 424_673),
        ({"targets": ("attn", "mlp"), "entries": 1000}, 1000),
    )

    @classmethod
    def examples(cls) -> Iterable[Method]:
        return cls(share=0.05), cls(entries=50, targets=("attn", "mlp"))

    def install(self, plan: Plan) -> None:
        places = once(plan, self.targets, ChosenByValue)
        weights = [plan.stock(place).detach() for place in places]
        sizes = list(entries_of(plan, places))
        budget = self.budget(sizes)
        if any(weight.is_meta for weight in weights):
            chosen = [torch.arange(share) for share in allot(budget, sizes)]
        else:
            own = [w if p.rows is None else w[slice(*p.rows)] for w, p in zip(weights, places, strict=True)]
            sizes_of = [weight.abs().float() for weight in own]
            chosen = largest([torch.where(size == 0, -torch.inf, -size) for size in sizes_of], budget)
        for place, weight, entries in zip(places, weights, chosen, strict=True):
            plan.change_weight(place, ChosenByValue(weight, place.rows, plan.shape(place), entries))
