from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from peft_core.lifecycle import singly
from peft_core.method import Method
from peft_core.parts.selection.importance import Scored, gradient_scores
from peft_core.values import Count


@dataclass(frozen=True, kw_only=True)
class FishMask(Scored):
    """FISH mask: the weights of the largest Fisher information train, chosen once before training.

    Sung et al., "Training Neural Networks with Fixed Sparse Masks", NeurIPS 2021. The score of an entry is its empirical Fisher
    information Σ (∂L/∂w)² over single samples with their given labels, the mask its largest over all tensors at once; W' = W +
    scatter(values), values starting at 0. As in varunnair18/FISH 1,024 samples and 0.5 %; there the head counts among these,
    here the share is of what has a role (linears, convolutions, norms, their biases; no embeddings of positions, no head, which
    trains whole). For noise predictors L is the squared error, whose use here is our own. 0.5 % of ViT-B/16's are 428,233
    parameters.

    `prepare` must be called with the losses of single samples (`lifecycle.Losses`): those of batches mix their signs.

    Args:
        samples: how many are looked at.
        biases: whether they may be chosen too, and count.
    """

    samples: Count = 1024
    vit_b16: ClassVar[tuple[tuple[dict[str, Any], int], ...]] = (
        ({}, 428_233),
        ({"targets": ("attn", "mlp"), "biases": False}, 424_673),
    )

    @classmethod
    def examples(cls) -> Iterable[Method]:
        return cls(share=0.05), cls(entries=60, biases=False, targets=("attn", "mlp"))

    def prepare(self, model: nn.Module, losses: Iterable[Tensor]) -> None:
        self.choose(model, gradient_scores(model, self, singly(losses), torch.square, self.samples))
