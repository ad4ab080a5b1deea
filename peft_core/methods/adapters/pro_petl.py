import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from peft_core.grafts.graft import match
from peft_core.grafts.shared import Reference
from peft_core.method import Method, Plan
from peft_core.parts.bottleneck import ACTIVATIONS, Bottleneck
from peft_core.parts.quantised.few_bits import from_bits, to_bits
from peft_core.values import Count, Positive, Range


@dataclass(frozen=True, kw_only=True)
class ProPETL(Method):
    """ProPETL: behind every MLP y ← y + (U ⊙ M_l) act((D ⊙ N_l) y + a) + b, one adapter under each block's binary masks.

    Zeng et al., "One Network, Many Masks: Towards More Parameter-Efficient Transfer Learning", ACL 2023. A mask keeps the entries
    whose score's |S| is among the top share of its matrix; gradients pass through it as if it were |S|. Scores are
    Kaiming-uniform (a = √5) and have a rate of their own; D Kaiming-uniform, U zero: identity at step 0. When training has
    ended each score becomes one bit. Width 64 (reduction 12), share 0.5, score rate 3e-3: ChaosCodes/ProPETL (1c08f19), whose
    adapter is Pfeiffer's. A hierarchy has an adapter for each width. 99,136 parameters on ViT-B/16 and 147,456 bytes of masks;
    1,278,784 train.

    Args:
        bottleneck: width h.
        share: of each matrix that its masks keep.
        activation: as adapter's.
        score_lr: the scores' learning rate.
        settled: masks are bits, as a finished training leaves them.
    """

    bottleneck: Count = 64
    share: Annotated[float, Range(above=0, most=1)] = 0.5
    activation: str = "relu"
    score_lr: Positive = 3e-3
    settled: bool = False
    needs: ClassVar[tuple[str, ...]] = ()
    not_mergeable: ClassVar[str | None] = "a bottleneck with an activation is no change of a weight."
    vit_b16: ClassVar[tuple[tuple[dict[str, Any], int], ...]] = (({}, 1_278_784), ({"settled": True}, 99_136))

    @classmethod
    def examples(cls) -> Iterable[Method]:
        return (cls(bottleneck=6),)

    def install(self, plan: Plan) -> None:
        for sublayer, width, dim in plan.sublayers(("mlp",), self.bottleneck):
            options = plan.options_at(sublayer.norm)

            def made(dim: int = dim, width: int = width, options: dict[str, Any] = options) -> nn.Module:
                return Bottleneck(dim, width, activation=self.activation, options=options)

            owner = "" if sublayer.tower is None else f"{sublayer.tower}_"
            shared = plan.shared(f"{owner}adapter_{dim}", made)
            plan.add_behind(sublayer, Masked(dim, width, shared, self.share, self.activation, self.settled, options))

    def parameter_groups(self, model: nn.Module, lr: float, weight_decay: float) -> Iterable[dict[str, Any]]:
        scores = [mask.scores for mask in model.modules() if isinstance(mask, Mask) and mask.scores is not None]
        return [{"params": scores, "lr": self.score_lr, "weight_decay": weight_decay}] if scores else []

    def finish(self, model: nn.Module) -> None:
        for mask in [module for module in model.modules() if isinstance(module, Mask)]:
            mask.settle()

    def as_trained(self, model: nn.Module) -> Self:
        settled = all(module.scores is None for module in model.modules() if isinstance(module, Mask))
        return replace(self, settled=True) if settled else self


class Masked(nn.Module):
    """(U ⊙ M) act((D ⊙ N) x + a) + b with the masks of one block."""

    def __init__(self, dim: int, width: int, shared: Reference, share: float, activation: str, settled: bool,
                 options: dict[str, Any]) -> None:  # fmt: skip
        super().__init__()
        self.shared, self.activation = shared, activation
        self.down, self.up = Mask(width, dim, share, settled, options), Mask(dim, width, share, settled, options)

    def forward(self, x: Tensor) -> Tensor:
        adapter = self.shared()
        down, up = adapter.down, adapter.up
        inner = F.linear(match(x, down.weight), down.weight * self.down(), down.bias)
        return F.linear(ACTIVATIONS[self.activation](inner), up.weight * self.up(), up.bias)


class Mask(nn.Module):
    """Ones where |scores| is among the top share, with the gradient of |scores|; or `bits`, eight entries a byte."""

    bits: Tensor | None

    def __init__(self, rows: int, columns: int, share: float, settled: bool, options: dict[str, Any]) -> None:
        super().__init__()
        self.shape, self.share = (rows, columns), share
        self.scores = None if settled else nn.Parameter(torch.empty(rows, columns, **options))
        size = math.ceil(rows * columns / 8)
        self.register_buffer(
            "bits", torch.full((size,), 255, dtype=torch.uint8, device=options["device"]) if settled else None
        )
        if self.scores is not None:
            nn.init.kaiming_uniform_(self.scores, a=math.sqrt(5))

    def forward(self) -> Tensor:
        if self.scores is None:
            assert self.bits is not None
            return from_bits(self.bits, 1, self.shape[0] * self.shape[1]).bool().view(self.shape)
        score = self.scores.abs()
        flat = score.detach().flatten()
        kept = flat.topk(len(flat) - int((1 - self.share) * len(flat)), sorted=False).indices
        return torch.zeros_like(flat).index_fill(0, kept, 1.0).view(self.shape) + (score - score.detach())

    @torch.no_grad()
    def settle(self) -> None:
        if self.scores is None:
            return
        self.bits = to_bits(self().flatten().long(), 1)
        self.scores = None
