from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from peft_core.grafts.graft import match
from peft_core.kernels.sparse import scattered
from peft_core.lifecycle import own_grafts
from peft_core.method import Method, Plan
from peft_core.parts.chance import chance
from peft_core.parts.selection.budget import allot, largest
from peft_core.parts.sparse import Sparse
from peft_core.passes.evaluating import evaluating
from peft_core.values import Positive, Range, Rate, Seed, Widths


@dataclass(frozen=True, kw_only=True)
class SparseAdapter(Method):
    """SparseAdapter: adapters behind attention and MLP of whose matrices only a share of the entries is there.

    He et al., "SparseAdapter: An Easy Approach for Improving the Parameter-Efficiency of Adapters", Findings of EMNLP 2022.
    y ← y + s·Up(relu(Down y)); Down and Up are drawn from N(0, 0.02²) by the seed, biases zero; `prepare` scores their entries
    and keeps the largest of all (`scope` global) or of each matrix. Score of an entry w: chance; |w|; |w Σ g| over the losses
    (snip); w H g (grasp); |w ∂R/∂w|, R what each adapter makes of ones with |weights| (synflow). Not identical at step 0: with Up
    zero all scores of its entries, and SNIP's of Down's, would be zero. Width 64, kept share 0.5 (their `sparsity` means that),
    AdamW 1e-4, weight decay 0.1: Shwai-He/SparseAdapter (b190084), whose default chooses by chance and which scores on a sample;
    here on all that `prepare` is given, in eval mode as there. The file holds what is kept as indices and values. Large-sparse, a
    wider adapter of as many entries, is preset sparse_adapter_large. 1,199,616 parameters on ViT-B/16.

    Args:
        bottleneck: one width h, or one a block where 0 means absent.
        share: of the entries of Down and Up that are kept.
        pruner: how entries are scored.
        scope: whether they compete over the model or within a matrix.
        scale: s.
        seed: of the matrices and of a choice by chance.
    """

    bottleneck: Widths = 64
    share: Annotated[float, Range(above=0, most=1)] = 0.5
    pruner: Literal["rand", "magnitude", "snip", "grasp", "synflow"] = "snip"
    scope: Literal["global", "local"] = "global"
    scale: Positive = 1.0
    dropout: Rate = 0.0
    seed: Seed = 0
    identity: ClassVar[bool] = False
    needs: ClassVar[tuple[str, ...]] = ("gates",)
    not_mergeable: ClassVar[str | None] = "a bottleneck with an activation is no change of a weight."
    vit_b16: ClassVar[tuple[tuple[dict[str, Any], int], ...]] = (({}, 1_199_616),)

    @classmethod
    def examples(cls) -> Iterable[Method]:
        small = cls(bottleneck=8, share=0.8, scope="local")  # the few entries of a tiny one may leave no way through
        return small, replace(small, pruner="grasp"), replace(small, pruner="synflow", scope="global")

    def install(self, plan: Plan) -> None:
        places = list(plan.sublayers(("attn", "cross_attn", "mlp"), self.bottleneck))
        sizes = [width * dim for _, width, dim in places for _ in range(2)]
        # until `prepare` knows better the budget lies as the sizes do, so that it is counted right
        shares = iter(allot(self.kept(sum(sizes)), sizes))
        for sublayer, width, dim in places:
            entries, options = (next(shares), next(shares)), plan.options_at(sublayer.norm)
            plan.add_behind(sublayer, SparseBottleneck(dim, width, entries, self.scale, self.dropout, options))

    def kept(self, size: int) -> int:
        return max(1, int(self.share * size + 1e-9))

    def prepare(self, model: nn.Module, losses: Iterable[Tensor]) -> None:
        adapters: list[SparseBottleneck] = [graft.change for graft in own_grafts(model, self)]
        matrices = [matrix for adapter in adapters for matrix in (adapter.down, adapter.up)]
        for number, matrix in enumerate(matrices):
            matrix.draw(chance(self.seed, number))
        with evaluating(model):
            scores = self._scores(adapters, [matrix.dense for matrix in matrices], losses)  # type: ignore[misc]
        together = [scores] if self.scope == "global" else [[score] for score in scores]
        chosen = [
            part for group in together for part in largest(group, self.kept(sum(score.numel() for score in group)))
        ]
        for matrix, entries in zip(matrices, chosen, strict=True):
            matrix.keep(entries)

    def _scores(
        self, adapters: Sequence["SparseBottleneck"], weights: list[Tensor], losses: Iterable[Tensor]
    ) -> list[Tensor]:
        if self.pruner == "rand":
            draws = enumerate(weights)
            return [
                torch.randn(w.shape, generator=chance(self.seed, n, 1), device="cpu").to(w.device) for n, w in draws
            ]
        if self.pruner == "magnitude":
            return [weight.detach().abs() for weight in weights]
        if self.pruner == "synflow":
            return [score for adapter in adapters for score in adapter.flow()]
        first = summed(weights, losses)
        if self.pruner == "snip":
            return [(weight * slope).detach().abs() for weight, slope in zip(weights, first, strict=True)]
        with sdpa_kernel(SDPBackend.MATH):  # the others have no second derivative
            along = (dot(slopes(weights, loss, True), first) for loss in losses)
            return [(weight * turn).detach() for weight, turn in zip(weights, summed(weights, along), strict=True)]


class SparseMatrix(Sparse):
    """(rows, columns), zero but for the chosen entries; all of them are there while they are scored."""

    dense: Tensor | None = None

    def __init__(self, rows: int, columns: int, entries: int, options: dict[str, Any]) -> None:
        super().__init__(torch.empty(0, **options), None, (rows, columns), entries)

    def draw(self, generator: torch.Generator) -> None:
        drawn = torch.randn(self.shape, generator=generator, device="cpu") * 0.02
        self.dense = drawn.to(self.values).requires_grad_()

    def keep(self, entries: Tensor) -> None:
        assert self.dense is not None
        self.choose(entries, values=self.dense.detach().flatten()[entries])
        self.dense = None

    def matrix(self) -> Tensor:
        if self.dense is not None:
            return self.dense
        self._check()
        return scattered(self.values.new_zeros(self.shape), self.indices, self.values)


class SparseBottleneck(nn.Module):
    """s·Up(drop(relu(Down x)))."""

    def __init__(self, dim: int, width: int, entries: tuple[int, int], scale: float, dropout: float,
                 options: dict[str, Any]) -> None:  # fmt: skip
        super().__init__()
        self.down, self.up = (
            SparseMatrix(width, dim, entries[0], options),
            SparseMatrix(dim, width, entries[1], options),
        )
        self.down_bias, self.up_bias = (nn.Parameter(torch.zeros(size, **options)) for size in (width, dim))
        self.scale, self.dropout = scale, dropout

    def forward(self, x: Tensor) -> Tensor:
        inner = F.relu(F.linear(match(x, self.down_bias), self.down.matrix(), self.down_bias))
        inner = F.dropout(inner, self.dropout, self.training)
        return F.linear(inner, self.up.matrix(), self.up_bias) * self.scale

    def flow(self) -> list[Tensor]:
        """|w ∂R/∂w| of Down and Up, R the sum of what comes out of |Down| and |Up| for ones."""
        down, up = (matrix.matrix().detach().abs().requires_grad_() for matrix in (self.down, self.up))
        inner = down.sum(1) + self.down_bias.detach().abs()  # not negative, so relu lets it pass
        return [
            (w * g).detach()
            for w, g in zip((down, up), torch.autograd.grad((up @ inner).sum(), (down, up)), strict=True)
        ]


def slopes(weights: list[Tensor], loss: Tensor, again: bool = False) -> list[Tensor]:
    found = torch.autograd.grad(loss, weights, create_graph=again, allow_unused=True)
    return [torch.zeros_like(w) if g is None else g for w, g in zip(weights, found, strict=True)]


def dot(one: list[Tensor], other: list[Tensor]) -> Tensor:
    return torch.stack([(a * b).sum() for a, b in zip(one, other, strict=True)]).sum()


def summed(weights: list[Tensor], losses: Iterable[Tensor]) -> list[Tensor]:
    """Σ ∂L/∂w over the losses."""
    sums: list[Tensor] = []
    for loss in losses:
        found = slopes(weights, loss)
        sums = [a + b for a, b in zip(sums, found, strict=True)] if sums else found
    return sums
