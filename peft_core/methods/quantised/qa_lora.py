from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn

from peft_core.errors import PeftError
from peft_core.kernels.quantised import packed_of
from peft_core.method import Method, Plan
from peft_core.parts.lowrank import LowRank
from peft_core.parts.ranked import Ranked
from peft_core.values import Count, Positive, Rate, Widths


class Pooled(LowRank):
    """W' = W + s·B A P with P (in/g, in) the mean over groups of g inputs, A (r, in/g): one number for all weights of a group."""

    def __init__(
        self, weight: Tensor, rows: tuple[int, int] | None, rank: int, scale: float, dropout: float, group: int
    ):
        super().__init__(weight, rows, rank, scale, dropout)
        self.group = group
        self.A = nn.Parameter(self.A.new_empty(rank, weight.shape[1] // group))
        nn.init.xavier_uniform_(self.A)

    @classmethod
    def accepts(cls, module: nn.Module, weight: Tensor, rows: tuple[int, int] | None) -> str | None:
        if not isinstance(module, nn.Linear | nn.MultiheadAttention):
            return f"a {type(module).__name__} has no groups of inputs to pool"
        return super().accepts(module, weight, rows)

    def factors(self) -> tuple[Tensor, Tensor]:
        return (self.A / self.group).repeat_interleave(self.group, 1), self.B

    def packed_values(self, module: nn.Module) -> list[tuple[Tensor, Tensor]] | None:
        """z' = z − s·(B A)/(g·scale): the change is one number in each group of integers, too."""
        packed, host = packed_of(module), vars(module)["_parameters"]
        if packed is None or packed.kind != "groups" or self.group % packed.about[1]:
            return None
        repeats = self.group // packed.about[1]
        change = (self.scale * self.factor / self.group) * (self.B @ self.A).repeat_interleave(repeats, 1)
        scale, zero = host["scale"], host["zero"].detach().clone()
        here = slice(None) if self.rows is None else slice(*self.rows)
        zero[here] -= (change / scale[here]).to(zero.dtype)
        return [(host["zero"], zero)]


@dataclass(frozen=True, kw_only=True)
class QALoRA(Ranked):
    """QA-LoRA: y = Q x + s·B A pool(x), pool the mean of each group of inputs; merged it is the zero points of the integers.

    Xu et al., "QA-LoRA: Quantization-Aware Low-Rank Adaptation of Large Language Models", ICLR 2024; yuhuixu1993/qa-lora@91604c7.
    A (rank, in/group_size) is Xavier-uniform, B (out, rank) zero. Since B A is one number in a group, W' = scale·(q − z') with
    z' = z − s·(B A)/(group_size·scale): integers and scales stay, the zero points are floating. `merge` does so where the
    backbone is of integers in groups that divide `group_size` (`quantise(model, "int4", group=32)`), and adds to plain weights
    elsewhere. Hugging Face PEFT's multiplies the mean by the number of groups, and does not merge. GPTQ, with which the authors
    quantise, is not here: integers are rounded to the nearest.

    Defaults: rank 64, alpha 16, groups of 32 as in the repository. Rank 8 and groups of 32 on q, v: 152,064 on ViT-B/16.

    Args:
        group_size: inputs whose mean A reads; divides every input width.
    """

    rank: Widths = 64
    alpha: Positive | None = 16.0
    dropout: Rate = 0.0
    group_size: Count = 32

    vit_b16: ClassVar[tuple[tuple[dict[str, Any], int], ...]] = (({"rank": 8, "targets": ("q", "v")}, 152_064),)

    @classmethod
    def examples(cls) -> Iterable[Method]:
        return cls(rank=2, group_size=8), cls(rank=2, group_size=4, rs=True, targets=("attn", "mlp"))

    def install(self, plan: Plan) -> None:
        for place, rank in plan.places(self.targets, self.rank, Pooled):
            width = plan.shape(place)[1]
            if width % self.group_size:
                raise PeftError(
                    f"qa_lora pools groups of {self.group_size} inputs, which do not divide the {width} of {place.module}: "
                    "choose another group_size."
                )
            weight = plan.stock(place)
            plan.change_weight(place, Pooled(weight, place.rows, rank, self.scale(rank), self.dropout, self.group_size))
