import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from peft_core.grafts.graft import Delta, match
from peft_core.grafts.shared import Reference
from peft_core.grafts.weight_changes import add_rows
from peft_core.method import Method, Plan
from peft_core.parts.factors import add_scaled, new_parameter, rows_of
from peft_core.values import Count, NotNegative, Seed


@dataclass(frozen=True, kw_only=True)
class VeRA(Method):
    """VeRA: W' = W + diag(b) B diag(d) A; A and B frozen, random and shared by all layers, d (rank) and b (out) learnt.

    Kopiczko et al., "VeRA: Vector-based Random Matrix Adaptation", ICLR 2024. One pair A (rank, in), B (out, rank) of the
    largest inputs and outputs, of which a layer takes the first columns and rows. As in Hugging Face PEFT both are
    Kaiming-uniform from the seed, which the adapter's card holds in their place; d starts at 0.1, b at 0: identity at step 0.
    Rank 256 on q, v: 24,576 parameters on ViT-B/16.

    Args:
        rank: it may lie above a layer's width.
        targets: roles or groups.
        d_initial: where d starts.
        seed: of A and B.
    """

    rank: Count = 256
    targets: Sequence[str] | None = None
    d_initial: NotNegative = 0.1
    seed: Seed = 0
    vit_b16: ClassVar[tuple[tuple[dict[str, Any], int], ...]] = (({}, 24_576),)

    @classmethod
    def examples(cls) -> Iterable[Method]:
        return (cls(rank=4, targets=("attn", "mlp")),)

    def install(self, plan: Plan) -> None:
        places = [place for place, _ in plan.places(self.targets, change=VectorPair)]
        shapes = [plan.shape(place) for place in places]
        options = plan.options_at(places[0].module)

        def frozen(rows: int, columns: int) -> Tensor:
            bound = math.sqrt(6 / columns)
            return torch.empty(rows, columns).uniform_(-bound, bound, generator=chance).to(**options)

        chance = torch.Generator().manual_seed(self.seed)
        a = plan.shared("A", lambda: frozen(self.rank, max(columns for _, columns in shapes)))
        b = plan.shared("B", lambda: frozen(max(rows for rows, _ in shapes), self.rank))
        for place in places:
            plan.change_weight(place, VectorPair(plan.stock(place), place.rows, self.rank, self.d_initial, a, b))


class VectorPair(Delta):
    """W' = W + diag(b) B diag(d) A, with the first columns of A and rows of B."""

    additive = commutes = needs_matrix = True

    def __init__(
        self, weight: Tensor, rows: tuple[int, int] | None, rank: int, start: float, a: Reference, b: Reference
    ):
        super().__init__(rows)
        self.pair, self.columns = (a, b), weight[0].numel()
        self.d, self.b = new_parameter(weight, rank), new_parameter(weight, rows_of(weight, rows))
        nn.init.constant_(self.d, start)
        nn.init.zeros_(self.b)

    def forward(self, weight: Tensor) -> Tensor:
        a, b = (found() for found in self.pair)
        change = (self.b[:, None] * b[: len(self.b)]) @ (self.d[:, None] * a[:, : self.columns])
        return add_scaled(weight, change, 1.0)

    def on_input(self, x: Tensor, run) -> Tensor:
        a, b = (found() for found in self.pair)
        convolves = x.dim() == 4 and run is not F.linear
        inner = run(match(x, self.d), a[:, : self.columns])
        inner = inner.movedim(1, -1) if convolves else inner
        y = F.linear(inner * self.d, b[: len(self.b)]) * (self.b * self.factor)
        return y.movedim(-1, 1) if convolves else y

    @staticmethod
    def kernel(x: Tensor, weight: Tensor, bias: Tensor | None, deltas: list["VectorPair"]) -> Tensor:
        y = F.linear(x, weight, bias)
        for delta in deltas:
            y = add_rows(y, delta.on_input(x, F.linear), delta.rows)
        return y
