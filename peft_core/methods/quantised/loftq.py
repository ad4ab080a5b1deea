from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

import torch

from peft_core.errors import PeftError
from peft_core.kernels.quantised import dense, packed_of
from peft_core.method import Method, Plan
from peft_core.parts.lowrank import LowRank
from peft_core.parts.quantised.packed import kept_weight, packed_as
from peft_core.parts.quantised.residuals import by_turns
from peft_core.parts.ranked import Ranked
from peft_core.parts.starts import principal
from peft_core.values import Count, Positive, Rate, Widths


@dataclass(frozen=True, kw_only=True)
class LoftQ(Ranked):
    """LoftQ: LoRA beside a quantised weight that starts at what quantisation lost: Q = quant(W − s·B A), s·B A = SVD_r(W − Q).

    Li et al., "LoftQ: LoRA-Fine-Tuning-Aware Quantization for Large Language Models", ICLR 2024; yxli2123/LoftQ@ae33fd4, Hugging
    Face PEFT 0.21. B = U √S / √s (out, rank), A = √S Vᵀ / √s (rank, in); with alpha = rank, as the authors have it, s is 1. The
    two are found by turns, from B A = 0. After one turn, the default of the authors' code and PEFT, Q is the backbone as it was
    quantised. After more it is another, which stands in for it (packed in the same form, beside the backbone's own weight, and
    saved with the adapter: 4 bits a number more). The authors' quantiser is NF4 or uniform without double quantisation, here
    it is the backbone's.

    Not the quantised model at step 0, but nearer to the one that was quantised. Parameters as LoRA's. The backbone is quantised
    with its weights at hand, `quantise(model, "nf4", keep=True)` or `--quantize nf4`; so it is for loading, too.
    Defaults: rank 16 of the repository, which adapts all linears (preset loftq_all; five turns in its README's example).

    Args:
        steps: turns.
    """

    rank: Widths = 16
    alpha: Positive | None = 16.0
    dropout: Rate = 0.0
    steps: Count = 1

    identity: ClassVar[bool] = False
    needs: ClassVar[tuple[str, ...]] = ("quantised",)

    @classmethod
    def examples(cls) -> Iterable[Method]:
        more = cls(rank=4, alpha=8.0, steps=3, targets=("q", "v", "proj", "mlp"))
        return cls(rank=4, alpha=4.0), cls(rank=2, alpha=8.0, rs=True, targets=("attn", "mlp")), more

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
            own = slice(None) if place.rows is None else slice(*place.rows)
            weight = whole.double()[own]
            if self.steps > 1:
                found, down, up = by_turns(
                    weight, rank, change.scale, lambda rest, like=packed: packed_as(like, rest), self.steps
                )
                plan.stand_in(place, found)
            else:
                down, up = principal(weight - dense(packed, torch.float32).double()[own], rank, change.scale)
            change.A.data.copy_(down)
            change.B.data.copy_(up)
            plan.change_weight(place, change)
