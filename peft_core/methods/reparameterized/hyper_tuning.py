from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from peft_core import lifecycle
from peft_core.attach import grafts_named
from peft_core.errors import PeftError
from peft_core.method import Method, Plan
from peft_core.parts.hypermodel import Reads, read_hypermodel
from peft_core.parts.lowrank import LowRank
from peft_core.parts.ranked import Ranked
from peft_core.stock import find_heads
from peft_core.values import Count


@dataclass(frozen=True, kw_only=True)
class HyperTuning(Ranked):
    """HyperTuning: LoRA whose start a hypermodel predicts from the pictures to be trained on, and its head with it.

    Phang, Mao, He, Chen, "HyperTuning: Toward Adapting Large Language Models without Back-propagation", ICML 2023; the form of
    what is predicted is that of Ruiz et al., "HyperDreamBooth", CVPR 2024: B A = (U u)(d D) of rank 1 at every place, U and D
    random, orthonormal and frozen, a = 100, b = 50, u and d by a transformer decoder that looks at its own prediction again
    (`parts.hypermodel`). `vision_peft hyper_tuning` trains one on tasks drawn from data sets, through the frozen model, whose
    loss on other pictures of the task is all that teaches it (HyperTuning's; HyperDreamBooth's distance to weights
    found beforehand is left out). In place of tokens of examples or of a face it reads the mean and spread of each class's
    features, ours, as is the head: what a picture's features are nearest to among the classes' means under the predicted
    change, W = 2t μ, b = −t ‖μ‖², as Proto-MAML starts its own (Triantafillou et al., ICLR 2020), t learnt.
    `prepare` predicts: of `rank` rows the first are the predicted ones, the others LoRA's, A Kaiming-uniform and B zero
    (their "rank-relaxed" tuning). Then everything trains as LoRA does: identity at step 0 before `prepare`. Merges. 294,912
    parameters on ViT-B/16 at rank 8 on q, v.

    Args:
        source: a folder of `vision_peft hyper_tuning`, of the same backbone and targets; None: LoRA's own start, as when
            what was trained is loaded.
        pictures: from which it predicts, the first ones.
    """

    source: str | None = None
    pictures: Count = 1000
    vit_b16: ClassVar[tuple[tuple[dict[str, Any], int], ...]] = (({}, 294_912),)

    @classmethod
    def examples(cls) -> Iterable[Method]:
        return (cls(rank=2),)

    def install(self, plan: Plan) -> None:
        for place, rank in plan.places(self.targets, self.rank, LowRank):
            plan.change_weight(place, LowRank(plan.stock(place), place.rows, rank, self.scale(rank)))
        if self.source is None:
            return
        heads = find_heads(plan.model, plan.anatomy)
        if len(heads) != 1:
            raise PeftError(
                f"hyper_tuning reads what a classifier's head receives, and this {plan.anatomy.family} has {len(heads)} heads: "
                "adapt a classifier, or leave source out."
            )
        plan.join(heads[0], "reads", Reads())

    def wants(self, call: str) -> bool:
        return super().wants(call) and (call != "prepare" or self.source is not None)

    def prepare(self, model: nn.Module, losses: Iterable[Tensor]) -> None:
        assert self.source is not None
        hypermodel, changes = read_hypermodel(self.source), places_of(model, self)
        shapes = {name: (len(change.B), change.A.shape[1]) for name, change in changes.items()}
        (reads,) = lifecycle.own_grafts(model, self, Reads)
        if hypermodel.places != shapes or min(len(change.A) for change in changes.values()) < hypermodel.rank:
            raise PeftError(
                f"hyper_tuning: {self.source} predicts rank {hypermodel.rank} at {len(hypermodel.places)} places, others "
                f"than these {len(shapes)}: take its backbone, targets and blocks, and no smaller rank."
            )
        pairs = lifecycle.labelled(losses)
        if pairs is None:
            raise PeftError(
                "hyper_tuning predicts from pictures with classes: call prepare with `Losses(…, labels=…)`."
            )
        features, labels = reads.gather(pairs, self.pictures)
        if features.shape[1:] != (hypermodel.settings["features"],):
            raise PeftError(f"hyper_tuning: {self.source} reads features of another width: take its backbone.")
        hypermodel.to(features.device)
        with torch.no_grad():
            for name, (down, up) in hypermodel(features, labels).items():
                change = changes[name]
                change.A[: len(down)] = down
                change.B[:, : len(down)] = up / change.scale
            head, pairs = _head(model, self), lifecycle.labelled(losses)
            if head is None or pairs is None:
                return
            weight, bias, classes = hypermodel.nearest_mean(*reads.gather(pairs, self.pictures))
            head.weight[classes] = weight.to(head.weight.dtype)
            head.bias[classes] = bias.to(head.bias.dtype)

    def as_trained(self, model: nn.Module) -> Self:
        return replace(self, source=None)


def places_of(model: nn.Module, method: Method) -> dict[str, Any]:
    """The method's low-rank changes by module and place."""
    paths = {id(module): path for path, module in model.named_modules()}
    name = lifecycle.adaptation_of(model, method).name
    found = [(f"{paths[id(m)]} {slot}", g) for m, slot, g in grafts_named(model, name) if isinstance(g, LowRank)]
    return dict(found)


def _head(model: nn.Module, method: Method) -> Any:
    """The linear layer that classifies, where it trains."""
    adaptation = lifecycle.adaptation_of(model, method).name
    heads: list[Any] = [module for module, _, graft in grafts_named(model, adaptation) if isinstance(graft, Reads)]
    linear = [head for head in heads if isinstance(head, nn.Linear) and head.weight.requires_grad]
    return linear[0] if linear and linear[0].bias is not None else None
