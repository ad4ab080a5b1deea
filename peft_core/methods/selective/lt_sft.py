from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from torch import Tensor, nn

from peft_core.method import Method
from peft_core.parts.selection.importance import Scored, moved_by_training
from peft_core.parts.sparse import ChosenByValue, OfMatrices
from peft_core.values import Count, Positive, Range


@dataclass(frozen=True, kw_only=True)
class LTSFT(Scored):
    """LT-SFT: the weights that full fine-tuning moves most train again from where they were, alone.

    Ansell et al., "Composable Sparse Fine-Tuning for Cross-Lingual Transfer", ACL 2022 (the lottery ticket of Frankle and
    Carbin on differences). `prepare` trains everything, takes the largest |θ1 − θ0| over all tensors at once and puts θ0 back,
    the head too; training then moves these entries, W' = W + scatter(values). As in cambridgeltl/composable-sft one iteration,
    1 % of the weights, norms frozen, AdamW at 5e-5; its L1 term is off by default there and left out here. The first phase needs
    the memory of full fine-tuning. Differences of several files on one model add up. 850,176 parameters on ViT-B/16.

    Args:
        passes: over the losses that `prepare` is given, in the first phase; there may be as many as those can be iterated.
        first_lr: learning rate of the first phase, without a schedule.
        biases: whether they may be chosen too, and count.
    """

    share: Annotated[float, Range(above=0, most=1)] = 0.01
    passes: Count = 3
    first_lr: Positive = 5e-5
    change: ClassVar[type[ChosenByValue]] = OfMatrices
    vit_b16: ClassVar[tuple[tuple[dict[str, Any], int], ...]] = (
        ({"targets": ("attn", "mlp"), "biases": False}, 849_347),
    )

    @classmethod
    def examples(cls) -> Iterable[Method]:
        return (cls(share=0.05, passes=1, first_lr=1e-3),)

    def prepare(self, model: nn.Module, losses: Iterable[Tensor]) -> None:
        self.choose(model, moved_by_training(model, self, losses, self.first_lr, self.passes))
