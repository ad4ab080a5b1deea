from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

import torch

from peft_core.errors import PeftError
from peft_core.kernels.quantised import dense, packed_of
from peft_core.method import Method, Plan
from peft_core.parts.lowrank import LowRank
from peft_core.parts.packed import kept_weight
from peft_core.parts.ranked import Ranked
from peft_core.values import Positive, Rate, Widths


@dataclass(frozen=True, kw_only=True)
class LoftQ(Ranked):
    """LoftQ: LoRA beside a quantised weight Q = quant(W) that starts at what Q lost: s·B A = SVD_rank(W − Q).

    Li et al., "LoftQ: LoRA-Fine-Tuning-Aware Quantization for Large Language Models", ICLR 2024; yxli2123/LoftQ@ae33fd4, Hugging
    Face PEFT 0.21. B = U √S / √s (out, rank), A = √S Vᵀ / √s (rank, in); with alpha = rank, as the authors have it, s is 1. One
    step of the alternation, which is what their code and PEFT do by default: Q stays that of W, so that the base is the same
    whenever it is quantised anew; later steps, which quantise W − s·B A, are not here.

    Not the quantised model at step 0, but nearer to the one that was quantised. Parameters as LoRA's. The backbone is quantised
    with its weights at hand, `quantise(model, "nf4", keep=True)` or `--quantize nf4`; so it is for loading, too.
    Defaults: rank 16 of the repository, which adapts all linears (preset loftq_all).
    """

    rank: Widths = 16
    alpha: Positive | None = 16.0
    dropout: Rate = 0.0

    identity: ClassVar[bool] = False
    needs: ClassVar[tuple[str, ...]] = ("quantised",)

    @classmethod
    def examples(cls) -> Iterable[Method]:
        return cls(rank=4, alpha=4.0), cls(rank=2, alpha=8.0, rs=True, targets=("attn", "mlp"))

    def install(self, plan: Plan) -> None:
        for place, rank in plan.places(self.targets, self.rank, LowRank):
            module = plan.model.get_submodule(place.module)
            packed, whole = packed_of(module), kept_weight(module)
            if packed is None or whole is None:
                raise PeftError(
                    f"loftq starts from what quantisation lost, and {place.module} "
                    + ("is not quantised" if packed is None else "no longer has it")
                    + ': quantise(model, "nf4", keep=True) just before, or fit with --quantize.'
                )
            change = LowRank(whole, place.rows, rank, self.scale(rank), self.dropout)
            lost = whole.double() - dense(packed, torch.float32).double()
            u, s, v = torch.linalg.svd(lost if place.rows is None else lost[slice(*place.rows)], full_matrices=False)
            root = (s[:rank] / change.scale).sqrt()
            change.A.data.copy_(root[:, None] * v[:rank])
            change.B.data.copy_(u[:, :rank] * root)
            plan.change_weight(place, change)
