from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from peft_core import lifecycle
from peft_core.errors import PeftError
from peft_core.method import Method, Plan
from peft_core.parts.factors import new_parameter
from peft_core.parts.lowrank import LowRank
from peft_core.parts.pruned import Pruned, cut
from peft_core.values import Count, NotNegative, Rate

BETA = 0.85
"""Of both running means, in the paper as in its code."""


class Triples(LowRank):
    """W' = W + s·P diag(λ) Q as B diag(E) A: A (r, in) and B (out, r) from N(0, 0.02²), E (r) zero."""

    def __init__(self, weight: Tensor, rows: tuple[int, int] | None, rank: int, scale: float, dropout: float = 0.0):
        super().__init__(weight, rows, rank, scale, dropout)
        self.E = new_parameter(weight, rank)
        nn.init.zeros_(self.E)
        for factor in (self.A, self.B):
            nn.init.normal_(factor, std=0.02)

    def factors(self) -> tuple[Tensor, Tensor]:
        return self.A * self.E[:, None], self.B


@dataclass(frozen=True, kw_only=True)
class AdaLoRA(Pruned):
    """AdaLoRA: W' = W + s·P diag(λ) Q, whose triples compete for a budget that shrinks while the model trains.

    Zhang et al., "AdaLoRA: Adaptive Budget Allocation for Parameter-Efficient Fine-Tuning", ICLR 2023. Q is `A` (rank, in), P
    `B` (out, rank), λ `E`, with which it starts at zero: identity at step 0; s = alpha/(rank + 1e-5) of the first rank, for
    ever. The loss gains c · the mean of ‖PᵀP − I‖_F and ‖QQᵀ − I‖_F over all matrices. After each step sensitivity |w ∂L/∂w| and
    its distance from its running mean are smoothed (β 0.85), their product is an entry's importance, and a triple's is that of
    its λ with the means over its row and column. Of b triples the least important lose their λ (and may come back):
        b = b_0 in the first `t_init` of the steps; then b_T + (b_0 − b_T)(1 − (t − t_i)/(T − t_f − t_i))³, every `every` steps;
        in the last `t_final` of them the choice is fixed.
    At the end what lost its λ is cut out. Schedule and step are those of Hugging Face PEFT (t_init 0, t_final 0, every 1,
    c 0.5; the authors' code has c 0.1 to 0.3, and 0.17, 0.5 and 10 of 3,000 steps in its README). Rank 12 on q, v: 442,656
    parameters on ViT-B/16, 295,104 of which a target of 8 leaves.

    Args:
        rank: the rank at the start; one a block where a list.
        alpha: s = alpha/(rank + 1e-5); 1 where it is None.
        dropout: on the change's own input; above 0 training takes the plain path.
        targets: roles or groups.
        rs: rank-stabilised scale.
        target_rank: b_T, as a mean over all places.
        t_init, t_final: shares of the training.
        every: steps between two choices.
        orthogonal: c.
        ranks: what is left of the ranks, `module.role` -> rank.
    """

    rank: Count = 12
    dropout: Rate = 0.0
    target_rank: Count = 8
    t_init: Rate = 0.0
    t_final: Rate = 0.0
    every: Count = 1
    orthogonal: NotNegative = 0.5
    vit_b16: ClassVar[tuple[tuple[dict[str, Any], int], ...]] = (({}, 442_656),)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.t_init + self.t_final >= 1:
            raise PeftError(
                "adalora got t_init and t_final that leave no time between them: together they must stay below 1."
            )
        if self.target_rank > self.rank:
            raise PeftError(f"adalora got the target_rank {self.target_rank}, above its rank {self.rank}.")

    @classmethod
    def examples(cls) -> Iterable[Method]:
        return (cls(rank=3, target_rank=2, alpha=100.0, targets=("attn", "mlp")),)

    def install(self, plan: Plan) -> None:
        for place, rank, left in self.chosen(plan, Triples):
            scale = 1.0 if self.alpha is None else self.alpha / ((rank**0.5 if self.rs else rank) + 1e-5)
            plan.change_weight(place, Triples(plan.stock(place), place.rows, left, scale, self.dropout))

    def penalty(self, model: nn.Module) -> Tensor | float:
        if not self.orthogonal:
            return 0.0
        norms = []
        for change in lifecycle.own_grafts(model, self, Triples):
            eye = torch.eye(len(change.A), device=change.A.device, dtype=change.A.dtype)
            with torch.autocast(change.A.device.type, enabled=False):
                norms += [(change.A @ change.A.t() - eye).norm(), (change.B.t() @ change.B - eye).norm()]
        return self.orthogonal * torch.stack(norms).mean()

    def after_step(self, model: nn.Module, progress: float) -> None:
        if not isinstance(progress, lifecycle.Progress):
            raise PeftError("adalora needs to know the steps: call after_step(model, Progress(step, steps)).")
        memory, changes = lifecycle.memory(model, self), list(lifecycle.own_grafts(model, self, Triples))
        step, steps = progress.step, progress.steps
        first, last = round(self.t_init * steps), steps - round(self.t_final * steps)
        if step < last:
            self._weigh(changes, memory)
        if step > last:
            for change, kept in zip(changes, memory.get("kept", ()), strict=False):
                change.E.masked_fill_(~kept.to(change.E.device), 0.0)
            return
        if step == last or (step > first and step % self.every == 0):
            start, goal = sum(len(change.E) for change in changes), self.target_rank * len(changes)
            done = 0.0 if step <= first else (step - first) / (last - first)
            budget = start if step <= first else int((start - goal) * (1 - done) ** 3 + goal)
            memory["kept"] = self._choose(changes, memory, budget)

    def _weigh(self, changes: list[Triples], memory: dict[str, Any]) -> None:
        """Takes the step's sensitivities into the running means."""
        for at, change in enumerate(changes):
            for name, p in (("A", change.A), ("B", change.B), ("E", change.E)):
                if p.grad is None:
                    continue
                now = (p * p.grad).abs()
                mean, spread = memory.get(f"{at}.{name}") or (torch.zeros_like(p), torch.zeros_like(p))
                mean = BETA * mean.to(p.device) + (1 - BETA) * now
                memory[f"{at}.{name}"] = [mean, BETA * spread.to(p.device) + (1 - BETA) * (now - mean).abs()]

    def _choose(self, changes: list[Triples], memory: dict[str, Any], budget: int) -> list[Tensor]:
        """Sets λ of all but the `budget` most important triples to zero; which ones stay."""
        scores = []
        for at, change in enumerate(changes):
            a, b, e = ((m[0] * m[1]).to(change.E.device) if (m := memory.get(f"{at}.{name}")) else torch.zeros_like(p)
                       for name, p in (("A", change.A), ("B", change.B), ("E", change.E)))  # fmt: skip
            scores.append(e + a.mean(1) + b.mean(0))
        every = torch.cat([score.cpu() for score in scores])
        lost = len(every) - budget
        threshold = torch.kthvalue(every, lost)[0].item() if lost > 0 else -1.0
        for change, score in zip(changes, scores, strict=True):
            change.E.masked_fill_(score <= threshold, 0.0)
        return [score > threshold for score in scores]

    def finish(self, model: nn.Module) -> None:
        for change in lifecycle.own_grafts(model, self, Triples):
            cut(change, change.E != 0, "E")
