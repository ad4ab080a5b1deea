from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from peft_core.grafts.graft import match
from peft_core.lifecycle import own_grafts
from peft_core.method import Method, Plan
from peft_core.parts.predictions import Predictions
from peft_core.values import Count, NotNegative, Widths


@dataclass(frozen=True, kw_only=True)
class AdaMix(Method):
    """AdaMix: behind the MLP y ← y + Up(gelu(Down_j y)), j drawn for each place and forward in training; afterwards their mean.

    Wang et al., "AdaMix: Mixture-of-Adaptations for Parameter-efficient Model Tuning", EMNLP 2022. M down matrices share one up
    matrix. A second forward of the batch, with draws of its own, adds consistency · ½(KL(p ‖ q) + KL(q ‖ p)), the batch's mean, p
    and q the two predictions, each the other's target without gradient; its own cross-entropy is not taken. Outside of training,
    and in the file of a finished one, stands the mean of the M. M 4, width 16 (RoBERTa-large; 48 BERT-base), AdamW 3e-4, weight
    decay 0.1, 20 epochs, 0.06 of them warm-up: microsoft/AdaMix (d361e9d). Down is N(0, 0.02²), biases zero, Up zero: identity at
    step 0 (`init="normal"`: theirs, Up N(0, 0.02²) too). The predictions are logits B C; where a model gives anything else it
    trains without that term. 747,264 parameters on ViT-B/16 in training, 304,320 afterwards.

    Args:
        bottleneck: one width h, or one a block where 0 means absent.
        experts: M; 1 is what a finished training loads as.
        consistency: weight of the second forward's term.
        init: of Up.
    """

    bottleneck: Widths = 16
    experts: Count = 4
    consistency: NotNegative = 1.0
    init: Literal["zero", "normal"] = "zero"
    needs: ClassVar[tuple[str, ...]] = ()
    not_mergeable: ClassVar[str | None] = "a bottleneck with an activation is no change of a weight."
    vit_b16: ClassVar[tuple[tuple[dict[str, Any], int], ...]] = (({}, 747_264), ({"experts": 1}, 304_320))

    @property
    def identity(self) -> bool:  # type: ignore[override]
        return self.init == "zero"

    @classmethod
    def examples(cls) -> Iterable[Method]:
        return (cls(bottleneck=6, experts=2),)

    def install(self, plan: Plan) -> None:
        for sublayer, width, dim in plan.sublayers(("mlp",), self.bottleneck):
            plan.add_behind(
                sublayer, Mixed(dim, width, self.experts, self.init == "normal", plan.options_at(sublayer.norm))
            )
        plan.join("", "predictions", Predictions())

    def wants(self, call: str) -> bool:
        return super().wants(call) and (self.experts > 1 or call not in ("penalty", "finish"))

    def penalty(self, model: nn.Module) -> Tensor | float:
        (root,) = own_grafts(model, self, Predictions)
        if self.experts == 1 or not self.consistency or not root.training:
            return 0.0
        args, kwargs, first = root.take(self.name)
        if first is None:
            return 0.0
        model(*args, **kwargs)
        second: Any = root.take(self.name)[2]
        p, q = (logits.float().log_softmax(-1) for logits in (first, second))
        both = [F.kl_div(a, b.detach(), reduction="batchmean", log_target=True) for a, b in ((p, q), (q, p))]
        return self.consistency * 0.5 * (both[0] + both[1])

    def finish(self, model: nn.Module) -> None:
        for mixed in [module for module in model.modules() if isinstance(module, Mixed)]:
            mixed.average()

    def as_trained(self, model: nn.Module) -> Self:
        mixed = [module for module in model.modules() if isinstance(module, Mixed)]
        return replace(self, experts=1) if all(len(each.down) == 1 for each in mixed) else self


class Mixed(nn.Module):
    """Up(gelu(Down_j x)): down (M, h, D), j drawn in training, the mean of all otherwise."""

    def __init__(self, dim: int, width: int, experts: int, normal: bool, options: dict[str, Any]) -> None:
        super().__init__()
        self.down = nn.Parameter(torch.empty(experts, width, dim, **options).normal_(std=0.02))
        self.down_bias = nn.Parameter(torch.zeros(experts, width, **options))
        self.up = nn.Parameter(torch.zeros(dim, width, **options))
        self.up_bias = nn.Parameter(torch.zeros(dim, **options))
        if normal:
            nn.init.normal_(self.up, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        x, down, bias = match(x, self.down), self.down, self.down_bias
        if self.training and len(down) > 1:
            route = drawn(len(down), down.device)
            down, bias = down.index_select(0, route), bias.index_select(0, route)
        inner = F.linear(x, down.mean(0), bias.mean(0))
        return F.linear(F.gelu(inner), self.up, self.up_bias)

    def average(self) -> None:
        """The mean stands for all."""
        self.down, self.down_bias = (nn.Parameter(each.mean(0, keepdim=True)) for each in (self.down, self.down_bias))


def drawn(count: int, device: torch.device) -> Tensor:
    return torch.randint(count, (1,), device=device)
