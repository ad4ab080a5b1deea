from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from peft_core.grafts.graft import match
from peft_core.method import Method, Plan
from peft_core.values import Count, NotNegative


@dataclass(frozen=True, kw_only=True)
class SMoP(Method):
    """Sparse mixture of prompts: a picture gets the prompt of its most probable route j, weighed by that probability, p_j P_j.

    Choi, Lee, Lee, "SMoP: Towards Efficient and Effective Prompt Tuning with Sparse Mixture-of-Prompts", EMNLP 2023. p =
    softmax(W x̄), x̄ (D) the mean of what the first block receives, W (routes, D); in training the logits are multiplied by 1 +
    noise·N(0, 1). P (routes, tokens, D) ~ N(0, 1), W orthogonal without bias, 4 routes of 5 tokens, noise 1, and no
    load-balancing loss: jyjohnchoi/SMoP (34da5e2), which trains with Adafactor at 0.5. They stand behind the class token
    from the first block on. Not identical at step 0: tokens take part in attention. 18,432 parameters on ViT-B/16.

    Args:
        tokens: of each route.
        routes: how many prompts there are.
        noise: of the router while training.
    """

    tokens: Count = 5
    routes: Count = 4
    noise: NotNegative = 1.0
    identity: ClassVar[bool] = False
    needs: ClassVar[tuple[str, ...]] = ("tokens",)
    not_mergeable: ClassVar[str | None] = "prompt tokens are part of the sequence, not of a weight."
    vit_b16: ClassVar[tuple[tuple[dict[str, Any], int], ...]] = (({}, 18_432),)

    @classmethod
    def examples(cls) -> Iterable[Method]:
        return (cls(tokens=2, routes=3),)

    def install(self, plan: Plan) -> None:
        for tower, run in plan.runs():
            stream = plan.token_stream(tower)
            made = Routed(stream.width, self.routes, self.tokens, self.noise, plan.options_at(run[0]))
            plan.add_tokens(run, made, stream, count=self.tokens)


class Routed(nn.Module):
    """x B N D -> prompts B P D."""

    def __init__(self, dim: int, routes: int, tokens: int, noise: float, options: dict[str, Any]) -> None:
        super().__init__()
        self.prompts = nn.Parameter(torch.randn(routes, tokens, dim, **options))
        self.router = nn.Parameter(torch.empty(routes, dim, **options))
        nn.init.orthogonal_(self.router)
        self.noise = noise

    def forward(self, x: Tensor) -> Tensor:
        logits = match(x.mean(1), self.router) @ self.router.t()
        if self.training and self.noise:
            logits = logits + self.noise * torch.randn_like(logits) * logits.detach()
        probability, route = logits.softmax(-1).max(-1)
        return self.prompts[route] * probability[:, None, None]
