from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from peft_core.errors import PeftError
from peft_core.grafts.graft import match
from peft_core.grafts.side import Side
from peft_core.lifecycle import own_grafts
from peft_core.method import Method, Plan
from peft_core.parts.transformer import SmallBlock
from peft_core.values import Count, Positive, Whole


@dataclass(frozen=True, kw_only=True)
class SideTuning(Method):
    """Side-tuning: y = σ(a) base(x) + (1 − σ(a)) side(x), blended where the last block's output goes; only a and side train.

    Zhang, Sax, Zamir et al., "Side-Tuning: A Baseline for Network Adaptation via Additive Side Networks", ECCV 2020;
    jozhang97/side-tuning (dea3456). base(x) is what the frozen blocks give, detached: nothing runs backward through them; a = 0,
    so σ(a) = ½ and the model is not the frozen one at step 0. There base and side are convolutional networks that see the
    picture, the side of four or five layers. On a transformer, which neither paper nor code has, the side reads what the first
    block receives, the picture's patches with their positions: Down (d, D), `depth` transformer blocks of width d =
    D/reduction, Up (D, d), and gives as many tokens as base; its sizes are this suite's. Before training it is distilled from the
    base, as there: Adam on ‖side(x) − base(x)‖² over the training pictures, whose passes and rate are this suite's too.
    595,681 parameters on ViT-B/16.

    Args:
        reduction: of the width D.
        depth: blocks of the side network.
        distill: passes over the training pictures before training; 0: the side starts at random.
        distill_lr: Adam's rate then.
        heads: of a side block, as many as its width allows up to these.
    """

    reduction: Count = 8
    depth: Count = 4
    distill: Whole = 1
    distill_lr: Positive = 1e-3
    heads: Count = 12
    identity: ClassVar[bool] = False
    needs: ClassVar[tuple[str, ...]] = ("stream",)
    not_mergeable: ClassVar[str | None] = "a network beside the frozen one is no change of its weights."
    vit_b16: ClassVar[tuple[tuple[dict[str, Any], int], ...]] = (({}, 595_681),)

    @classmethod
    def examples(cls) -> Iterable[Method]:
        return cls(reduction=4, depth=1, distill=0), cls(reduction=4, depth=2)

    def install(self, plan: Plan) -> None:
        if self.blocks is not None:
            raise PeftError("side_tuning stands beside all blocks: leave `blocks` out.")
        for tower, blocks in plan.towers():
            stream = plan.stream(tower)
            if (width := stream.width // self.reduction) < 1:
                raise PeftError(f"side_tuning's reduction {self.reduction} leaves nothing of the width {stream.width}.")
            net = Blend(stream.width, width, self, stream.causal, plan.options_at(blocks[0]))
            plan.add_side(blocks[:1], net, blocks[-1], stream)

    def wants(self, call: str) -> bool:
        return super().wants(call) and (call != "prepare" or self.distill > 0)

    def prepare(self, model: nn.Module, losses: Iterable[Any]) -> None:
        nets = [graft.net for graft in own_grafts(model, self, Side)]
        learnt = [p for net in nets for name, p in net.named_parameters() if name != "alpha"]
        optimiser = torch.optim.Adam(learnt, lr=self.distill_lr)
        for net in nets:
            net.missed = []
        try:
            for _ in range(self.distill):
                for _ in losses:  # each is a forward of a batch
                    missed = [miss for net in nets for miss in net.missed]
                    optimiser.zero_grad()
                    torch.stack(missed).sum().backward()
                    optimiser.step()
                    for net in nets:
                        net.missed.clear()
        finally:
            for net in nets:
                net.missed = None


class Blend(nn.Module):
    """[h₀, y], each B N D, to σ(a) y + (1 − σ(a)) side(h₀)."""

    missed: list[Tensor] | None = None
    """Mean squares of side(h₀) − y, gathered while it is distilled."""

    def __init__(self, dim: int, width: int, method: SideTuning, causal: bool, options: dict[str, Any]) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.zeros((), **options))
        self.down, self.up = nn.Linear(dim, width, **options), nn.Linear(width, dim, **options)
        heads = max(each for each in range(1, method.heads + 1) if width % each == 0)
        self.blocks = nn.ModuleList(SmallBlock(width, heads, causal, options) for _ in range(method.depth))

    def forward(self, features: list[Tensor]) -> Tensor:
        first, base = features
        s = self.down(match(first, self.down.weight))
        for block in self.blocks:
            s = block(s)
        side = self.up(s)
        if self.missed is not None:
            self.missed.append((side.float() - base.float()).square().mean())
        return torch.lerp(side, base.to(side.dtype), torch.sigmoid(self.alpha).to(side.dtype))
