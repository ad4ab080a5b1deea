from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from peft_core.grafts.graft import Graft
from peft_core.method import Method, Plan
from peft_core.parts.prompts import input_prompts
from peft_core.values import Count, NotNegative, Rate


@dataclass(frozen=True, kw_only=True)
class PTP(Method):
    """PTP: prompt tuning on pictures as they are and on perturbed ones, which smooths the loss.

    Chen, Huang, Cheng, "PTP: Boosting Stability and Performance of Prompt Tuning with Perturbation-based Regularizer", EMNLP
    2023, of which there is no code: built from its idea, L(x) + L(x + δ), as ½ (L(x) + L(x + δ)) in the mean. In training each
    sample of a forward is perturbed with probability ½, at the tokens that the first block receives behind the prefix: `noise`,
    δ ~ N(0, noise²·v), v the mean square of these tokens (the paper's noise on embeddings), or `mask`, each token at `rate`
    becomes zero (its masked words). Its adversarial form, δ by gradient ascent, is left out; a batch of one picture gets one
    draw a step, so two forwards are asked for (`lifecycle.instances`). Sizes are not known from the paper here. P ~ U(−0.5,
    0.5), 20 tokens. Not identical at step 0: tokens take part in attention. 15,360 parameters on ViT-B/16.

    Args:
        tokens: how many.
        kind: of perturbation.
        noise: its size, in root mean squares of the tokens.
        rate: of masked tokens.
    """

    tokens: Count = 20
    kind: Literal["noise", "mask"] = "noise"
    noise: NotNegative = 0.1
    rate: Rate = 0.15
    identity: ClassVar[bool] = False
    needs: ClassVar[tuple[str, ...]] = ("tokens",)
    not_mergeable: ClassVar[str | None] = "prompt tokens are part of the sequence, not of a weight."
    vit_b16: ClassVar[tuple[tuple[dict[str, Any], int], ...]] = (({}, 15_360),)

    @classmethod
    def examples(cls) -> Iterable[Method]:
        return cls(tokens=2), cls(tokens=2, kind="mask", tower="image")

    def install(self, plan: Plan) -> None:
        for _, paths, stream, values in input_prompts(plan, self.tokens):
            change = Perturbed(self.kind, self.noise if self.kind == "noise" else self.rate, stream.prefix)
            change.arg = stream.arg
            plan.join(paths[0], "perturbed", change)
            plan.add_tokens(paths, values, stream)

    def forwards(self) -> int:
        return 2


class Perturbed(Graft):
    """In training, half of the samples: tokens behind the prefix with noise, or some of them zero."""

    order = -2  # before any tokens come in
    scalable = False

    def __init__(self, kind: str, size: float, prefix: int) -> None:
        super().__init__()
        self.kind, self.size, self.prefix = kind, size, prefix

    def before(self, x: Tensor) -> Tensor:
        if not self.training or not self.size:
            return x
        front, tokens = x[:, : self.prefix], x[:, self.prefix :]
        if self.kind == "noise":
            scale = self.size * tokens.detach().square().mean().sqrt()
            other = tokens + scale * torch.randn_like(tokens)
        else:
            other = tokens * (torch.rand_like(tokens[..., :1]) >= self.size)
        struck = torch.rand_like(tokens[:, :1, :1]) < 0.5
        return torch.cat((front, torch.where(struck, other, tokens)), 1)
