from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from torch import nn

from peft_core.anatomies import Place
from peft_core.method import Method, Plan
from peft_core.parts.lowrank import LowRank
from peft_core.parts.selection.heads_and_channels import HeadsAndChannels
from peft_core.values import Widths


@dataclass(frozen=True, kw_only=True)
class SPLoRA(HeadsAndChannels):
    """SPLoRA: structured pruning adapters, W' = m (W + U D), while heads and channels of attention and MLP go.

    Hedegaard, Alok, Jose, Iosifidis, "Structured Pruning Adapters", Pattern Recognition 2024. D (rank, in) is Kaiming-uniform
    (a = √5), U (out, rank) uniform in ±1e-4, so the start is close to the frozen model and not it; biases train; rank 16:
    LukasHedegaard/structured-pruning-adapters (84cee43). That library takes the masks of any pruner and cuts rows and columns of
    W, U and D alike. The pruner here is our choice for transformers, that of `lora_prune` with the largest |W'| kept (`criterion`
    magnitude): heads and channels of residual networks' convolutions, as in the paper, are not pruned. `vision_peft merge`
    writes the small model. 2,737,152 parameters on ViT-B/16.
    """

    rank: Widths = 16
    criterion: Literal["lora", "magnitude"] = "magnitude"
    identity: ClassVar[bool] = False
    vit_b16: ClassVar[tuple[tuple[dict[str, Any], int], ...]] = (({}, 2_737_152),)

    @classmethod
    def examples(cls) -> Iterable[Method]:
        return (cls(rank=2, every=1, ratio=0.4, spare_ends=False),)

    def change(self, plan: Plan, place: Place, rank: int) -> LowRank:
        made = LowRank(plan.stock(place), place.rows, rank, 1.0, self.dropout)
        nn.init.uniform_(made.B, -1e-4, 1e-4)
        module = plan.model.get_submodule(place.module)
        if place.bias is not None and module._parameters.get(place.bias) is not None:
            plan.train(place.module, place.bias)
        return made
