import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from peft_core.grafts.graft import Delta, match
from peft_core.grafts.shared import Reference
from peft_core.kernels.vector_pair import factors_of, vector_pair_linear
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

    `probabilistic`: PVeRA (Fillioux et al., "PVeRA: Probabilistic Vector-Based Random Matrix Adaptation", WACV 2026). A and d
    have 2 · rank rows, μ and log σ² = diag(d) A x are the halves of what they give, and y = W x + b ⊙ B (μ + σ ε), ε ~ N(0, 1)
    in training, 0 after it, as in Hugging Face PEFT; what is merged is the mean's. 30,720 parameters.

    Args:
        rank: it may lie above a layer's width.
        targets: roles or groups.
        d_initial: where d starts.
        seed: of A and B.
        probabilistic: training draws what A gives (PVeRA), which takes the plain path.
    """

    rank: Count = 256
    targets: Sequence[str] | None = None
    d_initial: NotNegative = 0.1
    seed: Seed = 0
    probabilistic: bool = False
    vit_b16: ClassVar[tuple[tuple[dict[str, Any], int], ...]] = (({}, 24_576), ({"probabilistic": True}, 30_720))

    @classmethod
    def examples(cls) -> Iterable[Method]:
        drawn = cls(rank=4, targets=("proj", "fc1", "fc2"), probabilistic=True, d_initial=1.0)
        return cls(rank=4, targets=("attn", "mlp")), drawn

    def install(self, plan: Plan) -> None:
        places = [place for place, _ in plan.places(self.targets, change=VectorPair)]
        shapes = [plan.shape(place) for place in places]
        options = plan.options_at(places[0].module)

        def frozen(rows: int, columns: int) -> Tensor:
            bound = math.sqrt(6 / columns)
            return torch.empty(rows, columns).uniform_(-bound, bound, generator=chance).to(**options)

        chance, halves = torch.Generator().manual_seed(self.seed), 2 if self.probabilistic else 1
        a = plan.shared("A", lambda: frozen(halves * self.rank, max(columns for _, columns in shapes)))
        b = plan.shared("B", lambda: frozen(max(rows for rows, _ in shapes), self.rank))
        for place in places:
            weight = plan.stock(place)
            change = VectorPair(weight, place.rows, halves * self.rank, self.d_initial, a, b, self.probabilistic)
            plan.change_weight(place, change)


class VectorPair(Delta):
    """W' = W + diag(b) B diag(d) A, with the first columns of A and rows of B; of a drawn one with the first half of d and A."""

    additive = commutes = needs_matrix = rebuilds_input = True

    def __init__(self, weight: Tensor, rows: tuple[int, int] | None, rank: int, start: float, a: Reference, b: Reference,
                 drawn: bool = False):  # fmt: skip
        super().__init__(rows)
        self.pair, self.columns, self.drawn = (a, b), weight[0].numel(), drawn
        self.d, self.b = new_parameter(weight, rank), new_parameter(weight, rows_of(weight, rows))
        nn.init.constant_(self.d, start)
        nn.init.zeros_(self.b)

    @property
    def reads_input(self) -> bool:
        return self.drawn and self.training

    def quad(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """d, A, b and B, without what tells variances."""
        (a, b), rank = (found() for found in self.pair), len(self.d) // 2 if self.drawn else len(self.d)
        return self.d[:rank], a[:rank, : self.columns], self.b, b[: len(self.b)]

    def forward(self, weight: Tensor) -> Tensor:
        down, up = factors_of(self.quad())
        return add_scaled(weight, up @ down, 1.0)

    def on_input(self, x: Tensor, run) -> Tensor:
        a, b = (found() for found in self.pair)
        d, a = (self.d, a[:, : self.columns]) if self.reads_input else self.quad()[:2]
        convolves = x.dim() == 4 and run is not F.linear
        inner = run(match(x, self.d), a)
        inner = (inner.movedim(1, -1) if convolves else inner) * d
        if self.reads_input:
            mean, log_variance = inner.chunk(2, dim=-1)
            inner = mean + torch.randn_like(mean) * torch.exp(0.5 * log_variance)
        y = F.linear(inner, b[: len(self.b)]) * (self.b * self.factor)
        return y.movedim(-1, 1) if convolves else y

    kernel = staticmethod(vector_pair_linear)
