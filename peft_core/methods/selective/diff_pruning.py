from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor, nn

from peft_core.lifecycle import memory, own_grafts
from peft_core.method import Method, Plan
from peft_core.parts.chance import chance
from peft_core.parts.selection.budget import largest
from peft_core.parts.selection.gated import Gated
from peft_core.parts.selection.importance import Scored
from peft_core.parts.sparse import ChosenByValue
from peft_core.values import NotNegative, Positive, Range, Seed


@dataclass(frozen=True, kw_only=True)
class DiffPruning(Scored):
    """Diff pruning: W' = W + z ⊙ w, where hard-concrete gates z are driven to 0, and the entries that stay are trained again.

    Guo et al., "Parameter-Efficient Transfer Learning with Diff Pruning", ACL 2021, after dguo98/DiffPruning. Gates
    z = clamp(3·σ(log u − log(1 − u) + α) − 1.5, 0, 1), u uniform in (1e-4, .9999) drawn anew at each step, without u in eval;
    `structured` multiplies them by one more gate a tensor. α starts at 5 (gates open), w at 0: identity at step 0, where a
    convolution may round otherwise.

    1. w and α train, the loss plus λ · Σ σ(α) over all gates (its log(−l/r) is 0, as −l = r = 1.5), α by its own learning rate.
    2. At `gates_until` of the training the budget's largest |z ⊙ w| over all tensors stay, and gates are dropped.
    3. Those entries train to the end; `finish` leaves W' = W + scatter(values), all that a file of a finished run holds.

    Until then w and α are each as large as what they change, and a checkpoint holds both. There stages 1 and 3 take three epochs
    each with optimisers of their own; here one optimiser goes through. The default share is the paper's 0.5 %.

    Args:
        structured: one gate more a tensor.
        penalty_weight: λ.
        gate_lr: learning rate of the gates, whatever that of w.
        gates_until: share of the training after which the mask is fixed.
        biases: whether they take part.
        seed: of u, which is a function of it, of the place and of the step.
    """

    structured: bool = True
    penalty_weight: NotNegative = 1.25e-7
    gate_lr: Positive = 0.1
    gates_until: Annotated[float, Range(above=0, below=1)] = 0.5
    seed: Seed = 0
    change: ClassVar[type[ChosenByValue]] = Gated

    @classmethod
    def examples(cls) -> Iterable[Method]:
        return cls(share=0.05, structured=False, targets=("attn",)), cls(share=0.05, targets=("attn", "mlp"))

    def install(self, plan: Plan) -> None:
        super().install(plan)
        for place, (_, _, graft) in enumerate(plan.grafts):
            if isinstance(graft, Gated):
                graft.open(self.structured)
                graft.draw(self._number(place, 0))

    def _number(self, place: int, step: int) -> int:
        return chance(self.seed, place, step).initial_seed()

    def parameter_groups(self, model: nn.Module, lr: float, weight_decay: float) -> Iterator[dict[str, Any]]:
        open_ = [graft for graft in own_grafts(model, self, Gated) if not graft.settled]
        yield {"params": [p for graft in open_ for p in graft.gates()], "lr": self.gate_lr, "weight_decay": 0.0}
        yield {"params": [p for graft in open_ for p in graft.differences()], "weight_decay": 0.0}

    def penalty(self, model: nn.Module) -> Tensor | float:
        if memory(model, self).get("cut"):
            return 0.0
        gates = [p for graft in own_grafts(model, self, Gated) if not graft.settled for p in graft.gates()]
        return self.penalty_weight * sum((torch.sigmoid(alpha).sum() for alpha in gates), torch.zeros(()))

    def after_step(self, model: nn.Module, progress: float) -> None:
        kept = memory(model, self)
        kept["steps"] = kept.get("steps", 0) + 1
        for place, graft in enumerate(own_grafts(model, self, Gated)):
            if not graft.settled:
                graft.draw(self._number(place, kept["steps"]))
        if progress >= self.gates_until and not kept.get("cut"):
            self._cut(model)

    def _cut(self, model: nn.Module) -> None:
        grafts = [graft for graft in own_grafts(model, self, Gated) if not graft.settled]
        changes = [change for graft in grafts for change in graft.changes()]
        chosen = iter(largest([change.abs() for change in changes], self.budget([c.numel() for c in changes])))
        for graft in grafts:
            graft.fix([next(chosen) for _ in graft.changes()])
        memory(model, self)["cut"] = True

    def finish(self, model: nn.Module) -> None:
        if not memory(model, self).get("cut"):
            self._cut(model)
        for graft in own_grafts(model, self, Gated):
            if not graft.settled:
                graft.settle()
