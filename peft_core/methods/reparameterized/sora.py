from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from peft_core import lifecycle
from peft_core.method import Method, Plan
from peft_core.parts.factors import new_parameter
from peft_core.parts.lowrank import LowRank
from peft_core.parts.pruned import Pruned, cut
from peft_core.values import NotNegative, Rate


class Gated(LowRank):
    """W' = W + s·B diag(g) A; g (r) is drawn from N(0, 1)."""

    def __init__(self, weight: Tensor, rows: tuple[int, int] | None, rank: int, scale: float, dropout: float = 0.0):
        super().__init__(weight, rows, rank, scale, dropout)
        self.g = new_parameter(weight, rank)
        nn.init.normal_(self.g)

    def factors(self) -> tuple[Tensor, Tensor]:
        return self.A * self.g[:, None], self.B


@dataclass(frozen=True, kw_only=True)
class SoRA(Pruned):
    """SoRA: W' = W + s·B diag(g) A; gates g (rank) that shrink to zero in training are cut out at its end.

    Ding et al., "Sparse Low-rank Adaptation of Pre-trained Language Models", EMNLP 2023. As in TsinghuaC3I/SoRA A is
    Kaiming-uniform, B zero (identity at step 0), g drawn from N(0, 1). The loss gains λ · mean |g|; g has a group of its own
    without weight decay; after each step entries with |g| > ξ shrink by ξ and then those with |g| < ξ become 0: all that was
    below 2 ξ. (ξ does not depend on the learning rate there.) Its schedule of ξ from 0 in seven trainings is left out: set
    `xi` run by run. Rank 8 on all linears: 1,327,680 parameters on ViT-B/16, before cutting.

    Args:
        rank: one rank, or one a block where 0 means absent.
        alpha: s = alpha/rank (of the rank before cutting); 1 where it is None.
        dropout: on the change's own input; above 0 training takes the plain path.
        targets: roles or groups.
        rs: rank-stabilised scale.
        xi: the threshold ξ.
        penalty_weight: λ.
        norms: whether the norms train, too, as there.
        ranks: what is left of the ranks, `module.role` -> rank.
    """

    dropout: Rate = 0.0
    xi: NotNegative = 3e-4
    penalty_weight: NotNegative = 10.0
    norms: bool = False
    vit_b16: ClassVar[tuple[tuple[dict[str, Any], int], ...]] = (({"rank": 8, "targets": ("attn", "mlp")}, 1_327_680),)

    @classmethod
    def examples(cls) -> Iterable[Method]:
        return (cls(rank=2, alpha=3.0, targets=("attn", "mlp")), cls(rank=2, norms=True))

    def install(self, plan: Plan) -> None:
        for place, rank, left in self.chosen(plan, Gated):
            plan.change_weight(place, Gated(plan.stock(place), place.rows, left, self.scale(rank), self.dropout))
        norms = [role for role in plan.anatomy.roles() if "norm" in role]
        for place, _ in plan.places(norms) if self.norms else ():
            module = plan.model.get_submodule(place.module)
            plan.train(place.module, *(n for n in ("weight", "bias") if module._parameters.get(n) is not None))

    def _gates(self, model: nn.Module) -> list[Tensor]:
        return [change.g for change in lifecycle.own_grafts(model, self, Gated)]

    def parameter_groups(self, model: nn.Module, lr: float, weight_decay: float) -> Iterable[dict[str, Any]]:
        return ({"params": self._gates(model), "lr": lr, "weight_decay": 0.0},)

    def penalty(self, model: nn.Module) -> Tensor | float:
        return self.penalty_weight * torch.cat(self._gates(model)).abs().mean()

    def after_step(self, model: nn.Module, progress: float) -> None:
        for g in self._gates(model):
            g.sub_(torch.where(g.abs() > self.xi, self.xi * g.sign(), 0.0))
            g.masked_fill_(g.abs() < self.xi, 0.0)

    def finish(self, model: nn.Module) -> None:
        for change in lifecycle.own_grafts(model, self, Gated):
            cut(change, change.g != 0, "g")
