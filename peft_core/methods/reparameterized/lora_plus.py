from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import nn

from peft_core import lifecycle
from peft_core.method import Method, Plan
from peft_core.parts.lowrank import LowRank
from peft_core.parts.ranked import Ranked
from peft_core.stock import head_of
from peft_core.values import Positive, Rate


@dataclass(frozen=True, kw_only=True)
class LoRAPlus(Ranked):
    """LoRA+: LoRA whose B learns `lr_ratio` times as fast as its A.

    Hayou, Ghosh, Yu, "LoRA+: Efficient Low Rank Adaptation of Large Models", ICML 2024. Three groups, as in
    nikhil-ghosh-berkeley/loraplus: A and the head's matrix at lr; B at lr · lr_ratio; the head's biases at lr · lr_ratio
    without weight decay (there every trained vector is). The code has no default ratio: its examples take 20, RoBERTa 80,
    GPT-2 10, Llama 1, with a lower lr than LoRA's; 16 is what Hugging Face PEFT suggests and stands here. Start, change and
    counts are LoRA's: rank 8 on q, v inserts 294,912 parameters on ViT-B/16.

    Args:
        rank: one rank, or one a block where 0 means absent.
        alpha: s = alpha/rank; 1 where it is None.
        dropout: on the change's own input; above 0 training takes the plain path.
        targets: roles or groups.
        rs: rank-stabilised scale.
        lr_ratio: B's learning rate over A's.
    """

    dropout: Rate = 0.0
    lr_ratio: Positive = 16.0
    vit_b16: ClassVar[tuple[tuple[dict[str, Any], int], ...]] = (({"rank": 8}, 294_912),)

    @classmethod
    def examples(cls) -> Iterable[Method]:
        return (cls(rank=2),)

    def install(self, plan: Plan) -> None:
        for place, rank in plan.places(self.targets, self.rank, LowRank):
            plan.change_weight(place, LowRank(plan.stock(place), place.rows, rank, self.scale(rank), self.dropout))

    def parameter_groups(self, model: nn.Module, lr: float, weight_decay: float) -> Iterable[dict[str, Any]]:
        ups = [change.B for change in lifecycle.own_grafts(model, self, LowRank)]
        vectors = [p for p in head_of(model).values() if isinstance(p, nn.Parameter) and p.dim() == 1]
        fast = lr * self.lr_ratio
        return {"params": ups, "lr": fast}, {"params": vectors, "lr": fast, "weight_decay": 0.0}
