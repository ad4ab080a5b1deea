from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from peft_core.errors import PeftError
from peft_core.grafts.graft import Delta
from peft_core.method import Method, Plan
from peft_core.values import Whole


class Rows(Delta):
    """Rows of an embedding for ids first … first + n − 1, n D, that stand beside the table."""

    scalable = False

    def __init__(self, first: int, values: Tensor):
        super().__init__()
        self.first = first
        self.vectors = nn.Parameter(values)

    def look_up(self, ids: Tensor, rows: Tensor) -> Tensor:
        mine = ids - self.first
        chosen = (mine >= 0) & (mine < len(self.vectors))
        found = self.vectors[mine.clamp(0, len(self.vectors) - 1)]
        return torch.where(chosen[..., None], found.to(rows.dtype), rows)

    def forward(self, weight: Tensor) -> Tensor:
        gap = weight.new_zeros(max(0, self.first - len(weight)), weight.shape[1])
        before, after = weight[: self.first], weight[self.first + len(self.vectors) :]
        return torch.cat((before, gap, self.vectors.to(weight.dtype), after))


@dataclass(frozen=True, kw_only=True)
class TextualInversion(Method):
    """Textual inversion: new tokens whose embedding vectors are all that trains.

    Gal et al., "An Image is Worth One Word: Personalizing Text-to-Image Generation using Textual Inversion", ICLR 2023.
    The vectors stand beside the vocabulary's table, so no other row changes by one bit and the optimiser keeps no state
    for them. 768 parameters a vector on CLIP-L, 768 + 1280 on SDXL. `diffusion_peft fit --placeholder "<toy>"
    --initializer toy --vectors 2` chooses ids and initial words.

    Args:
        first: id of the first new token, usually the vocabulary's size.
        initial: a token id for each vector, whose row it starts as.
    """

    first: Whole = 0
    initial: Sequence[Whole] = ()

    needs: ClassVar[tuple[str, ...]] = ("words",)
    suits: ClassVar[tuple[str, ...]] = ("transformers CLIP text model",)
    not_mergeable: ClassVar[str | None] = (
        "its tokens belong to a tokenizer too: `diffusion_peft merge` writes the whole pipeline."
    )

    @classmethod
    def examples(cls) -> Iterable[Method]:
        return (cls(first=1, initial=tuple(range(1, 90))),)

    def install(self, plan: Plan) -> None:
        if not self.initial:
            raise PeftError("textual_inversion got no vectors: `initial` names a token id for each one to start as.")
        for place, _ in plan.places(("token_embed",)):
            table = plan.stock(place)
            wrong = [i for i in self.initial if not 0 <= i < len(table)]
            if wrong or self.first < 0:
                raise PeftError(
                    f"textual_inversion got first {self.first} and initial {list(self.initial)}: the vocabulary's ids are "
                    f"0 to {len(table) - 1}."
                )
            values = table.detach()[list(self.initial)].to(torch.promote_types(table.dtype, torch.float32))
            plan.change_weight(place, Rows(self.first, values.clone()))
