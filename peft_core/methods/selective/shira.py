from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from peft_core.errors import PeftError
from peft_core.method import Method, Plan
from peft_core.parts.selection.budget import largest, largest_a_row, once
from peft_core.parts.sparse import ChosenByValue, Sparse
from peft_core.values import Count, Seed


@dataclass(frozen=True, kw_only=True)
class SHiRA(Method):
    """SHiRA: a fixed few entries of each weight train, W' = W + scatter(values), values (k) starting at 0.

    Bhardwaj et al., "Sparse High Rank Adapters", NeurIPS 2024. k = rank · (out + in), as many as LoRA of that rank has, though
    the change is of any rank. The mask is random from a seed (SHiRA-Rand, Hugging Face PEFT's and the same mask as its
    `random_seed` gives), or the largest weights (SHiRA-WM). `per_row` takes that many entries of each row instead: with the
    magnitude it is what NeuroAda (Zhang et al., EMNLP 2025) trains. Rank 32 on all linears inserts 4,718,592 parameters on
    ViT-B/16, one entry a row 82,944.

    Args:
        rank: sets the number of entries by LoRA's measure.
        per_row: entries of each row, in place of a rank's.
        mask: `random`, or `magnitude`: the largest |W|.
        targets: roles or groups.
        seed: of the random mask.
    """

    rank: Count = 32
    per_row: Count | None = None
    mask: Literal["random", "magnitude"] = "random"
    targets: Sequence[str] | None = None
    seed: Seed = 0
    vit_b16: ClassVar[tuple[tuple[dict[str, Any], int], ...]] = (
        ({"targets": ("qkv", "proj", "fc1", "fc2")}, 4_718_592),
        ({"targets": ("attn", "mlp"), "per_row": 1, "mask": "magnitude"}, 82_944),
    )

    @classmethod
    def examples(cls) -> Iterable[Method]:
        return cls(rank=2), cls(per_row=2, mask="magnitude", targets=("attn", "mlp"))

    def install(self, plan: Plan) -> None:
        kind = Sparse if self.mask == "random" else ChosenByValue
        targets = plan.anatomy.default_targets if self.targets is None else self.targets
        for place in once(plan, targets, kind):
            weight, shape = plan.stock(place), plan.shape(place)
            entries = self._entries(weight if place.rows is None else weight[slice(*place.rows)], shape, place.module)
            plan.change_weight(place, kind(weight, place.rows, shape, entries))

    def _entries(self, weight: Tensor, shape: tuple[int, int], at: str) -> Tensor:
        out, inner = shape
        count = self.rank * (out + inner) if self.per_row is None else self.per_row
        most = out * inner if self.per_row is None else inner
        if count > most:
            what = f"rank {self.rank}, which" if self.per_row is None else f"per_row {self.per_row}, which"
            has = f"the weight's {most:,}" if self.per_row is None else f"the {most:,} of a row"
            raise PeftError(f"shira got {what} asks for {count:,} entries at {at}, above {has}.")
        if self.mask == "random":
            chance = torch.Generator().manual_seed(self.seed)
            if self.per_row is None:
                return torch.randperm(most, generator=chance)[:count]
            return largest_a_row(torch.rand(out, inner, generator=chance), count)
        if weight.is_meta:
            return torch.arange(count if self.per_row is None else count * out)
        size = weight.detach().abs().float().reshape(shape)
        return largest([size], count)[0] if self.per_row is None else largest_a_row(size, count)
