from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from peft_core import lifecycle
from peft_core.errors import PeftError
from peft_core.method import Method, Plan
from peft_core.parts.lowrank import LowRank
from peft_core.parts.pruned import Pruned, cut
from peft_core.parts.selection.bilevel import search
from peft_core.parts.selection.first_phase import put_back
from peft_core.values import Count, Positive, Rate


class Searched(LowRank):
    """W' = W + s·Σ_j c_j b_j a_jᵀ: c a softmax of coefficients while they are searched, then 1 for those that stay, 0 else."""

    def __init__(self, weight: Tensor, rows: tuple[int, int] | None, rank: int, scale: float):
        super().__init__(weight, rows, rank, scale)
        self.register_buffer("keep", torch.ones(rank, dtype=torch.bool, device=weight.device))
        self.coefficients: Tensor | None = None

    def factors(self) -> tuple[Tensor, Tensor]:
        if self.coefficients is not None:
            return self.A, self.B * torch.softmax(self.coefficients, 0)
        keep: Any = self.keep
        return self.A, self.B * keep


@dataclass(frozen=True, kw_only=True)
class AutoLoRA(Pruned):
    """AutoLoRA: LoRA whose ranks a search finds place by place, W' = W + s·Σ_j softmax(α)_j b_j a_jᵀ while it runs.

    Zhang, Qiang, Somayajula, Xie, "AutoLoRA: Automatically Tuning Matrix Ranks in Low-Rank Adaptation Based on Meta Learning",
    NAACL 2024. `prepare` searches: α starts at 1; 70 % of the batches train A, B and the head, and with each step on one of
    the other 30 % α follows the gradient of that loss through one unrolled step w' = w − ξ ∇_w L_train(w, α),
        ∇_α L(w', α) − ξ ∇²_{α,w} L_train(w, α) ∇_{w'} L(w', α),
    here the exact product, in place of their finite difference. Then A, B and head are as before, a component stays where its
    softmax is 1/r or more, and training is that of a plain LoRA with the ranks that are left, which the card keeps. As in
    ruz048/AutoLoRA: rank 8, Adam 3e-4 on both (of α with betas 0.5, 0.999), 20 epochs, then lr 1e-4 anew. The authors split the
    pictures once; here each pass over the data splits its batches. The scale stays alpha/rank of the first rank. Identity at
    step 0. Rank 8 on q, v: 294,912 parameters on ViT-B/16 before the search.

    Args:
        rank: the rank at the start; one a block where a list.
        alpha: s = alpha/rank; 1 where it is None (16 there).
        targets: roles or groups.
        rs: rank-stabilised scale.
        search_epochs: passes of the search over the data.
        search_lr: of both optimisers of the search, and ξ.
        held_out: the share of the batches that α learns from.
        ranks: what is left of the ranks, `module.role` -> rank.
    """

    search_epochs: Count = 20
    search_lr: Positive = 3e-4
    held_out: Rate = 0.3
    vit_b16: ClassVar[tuple[tuple[dict[str, Any], int], ...]] = (({"rank": 8}, 294_912),)

    @classmethod
    def examples(cls) -> Iterable[Method]:
        return (cls(rank=2, alpha=3.0, targets=("attn", "mlp")),)

    def install(self, plan: Plan) -> None:
        for place, rank, left in self.chosen(plan, Searched):
            plan.change_weight(place, Searched(plan.stock(place), place.rows, left, self.scale(rank)))

    def prepare(self, model: nn.Module, losses: Iterable[Any]) -> None:
        if self.ranks is not None:
            return
        changes: list[Searched] = list(lifecycle.own_grafts(model, self, Searched))
        for change in changes:
            change.coefficients = torch.ones_like(change.A[:, 0]).requires_grad_()
        weights = [p for p in model.parameters() if p.requires_grad]
        alphas: list[Any] = [change.coefficients for change in changes]
        outer = torch.optim.Adam(alphas, lr=self.search_lr, betas=(0.5, 0.999))
        inner = torch.optim.Adam(weights, lr=self.search_lr)
        try:
            every = (loss for _ in range(self.search_epochs) for loss in losses)
            with put_back(weights):
                search(every, weights, alphas, inner, outer, self.search_lr, self.held_out)
            with torch.no_grad():
                for change, alpha in zip(changes, alphas, strict=True):
                    share = torch.softmax(alpha, 0)
                    change.keep.copy_(share >= min(1 / len(share), share.max().item()) * (1 - 1e-6))  # type: ignore[operator]
        finally:
            for change in changes:
                change.coefficients = None
        lifecycle.memory(model, self)["searched"] = True

    def after_step(self, model: nn.Module, progress: float) -> None:
        if self.ranks is None and not lifecycle.memory(model, self).get("searched"):
            raise PeftError(
                "auto_lora searches its ranks in data: call peft_core.lifecycle.prepare(model, losses) before training."
            )

    def finish(self, model: nn.Module) -> None:
        for change in lifecycle.own_grafts(model, self, Searched):
            left = change.keep
            cut(change, left)
            change.keep = torch.ones(len(change.A), dtype=torch.bool, device=left.device)
