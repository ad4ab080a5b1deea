from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from peft_core.lifecycle import adaptation_of, memory
from peft_core.method import Method, Plan
from peft_core.parts.selection.importance import Scored, gradient_scores
from peft_core.values import Positive, Range, Seed


@dataclass(frozen=True, kw_only=True)
class ChildTuning(Scored):
    """Child-Tuning: of the blocks' weights a share p trains, by the task (D) or drawn anew for each step (F).

    Xu et al., "Raise a Child in Large Language Model: Towards Effective and Generalizable Fine-tuning", EMNLP 2021, as in
    alibaba/AliceMind, p = 0.3.

    `task`: once before training, the largest Σ g² over the mini-batches of the training set, each tensor's g clipped to a norm;
    W' = W + scatter(values). Weight decay pulls these alone towards the stock weights; there it acts on all.
    `free`: the gradients of all the blocks' weights are multiplied by Bernoulli(p) / p, drawn for each step from the seed and
    the step's number; the optimiser's older moments still move what is masked. This regularises full fine-tuning: what trains,
    and what is saved, is the whole of the blocks, 85,054,464 parameters on ViT-B/16 (`task` 25,516,339).

    Args:
        kind: `task` or `free`.
        share: p.
        clip: norm that a tensor's gradient is clipped to in `task`'s sum.
        seed: of `free`'s masks.
        targets: roles or groups; every weight of a block that has a role where None (`free`: every parameter of a block).
    """

    kind: Literal["task", "free"] = "task"
    share: Annotated[float, Range(above=0, most=1)] = 0.3
    clip: Positive = 1.0
    seed: Seed = 0
    in_blocks: ClassVar[bool] = True
    vit_b16: ClassVar[tuple[tuple[dict[str, Any], int], ...]] = (
        ({}, 25_516_339),
        ({"targets": ("attn", "mlp"), "biases": False}, 25_480_397),
    )

    @classmethod
    def examples(cls) -> Iterable[Method]:
        return cls(), cls(kind="free")

    def install(self, plan: Plan) -> None:
        in_blocks = tuple(f"{path}." for _, paths in plan.towers() for path in paths)
        if self.kind == "task":
            super().install(plan)
            return
        chosen = None if self.targets is None else {place.module for place, _ in plan.places(self.targets)}
        for module, name in plan.stock_parameters():
            if module.startswith(in_blocks) and (chosen is None or module in chosen):
                plan.train(module, name)

    def wants(self, call: str) -> bool:
        return super().wants(call) and (call != "prepare" or self.kind == "task")

    def prepare(self, model: nn.Module, losses: Iterable[Tensor]) -> None:
        self.choose(model, gradient_scores(model, self, losses, self._squared))

    def _squared(self, gradient: Tensor) -> Tensor:
        return (gradient * (self.clip / (gradient.norm() + 1e-6)).clamp(max=1.0)).square()

    def before_step(self, model: nn.Module) -> None:
        if self.kind == "task":
            return
        kept = memory(model, self)
        kept["steps"] = kept.get("steps", 0) + 1
        chance = torch.Generator().manual_seed(self.seed * 1_000_003 + kept["steps"])
        parameters = dict(model.named_parameters())
        for key in adaptation_of(model, self).trained:
            if (gradient := parameters[key].grad) is not None:
                mask = torch.rand(gradient.shape, generator=chance) < self.share
                gradient.mul_(mask.to(gradient) / self.share)
