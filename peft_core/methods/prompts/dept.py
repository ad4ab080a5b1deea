import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from peft_core import lifecycle
from peft_core.errors import PeftError
from peft_core.grafts.graft import Graft
from peft_core.grafts.tokens import Tokens
from peft_core.method import Method, Plan
from peft_core.values import Count, Positive


@dataclass(frozen=True, kw_only=True)
class DePT(Method):
    """DePT: a short prompt, and a low-rank change of the input by position: [cls, P, patches] of x + s·A B.

    Shi and Lipani, "DePT: Decomposed Prompt Tuning for Parameter-Efficient Fine-tuning", ICLR 2024. x (N, D) is what the
    model's first norm or block receives, class token and positions in; A (N, rank) Kaiming-uniform, B (rank, D) zero, s =
    alpha/√rank: ZhengxiangShi/DePT (f0266a7, where x are a text's word embeddings). A has a row a position, so pictures keep
    the size that the model was made for; s·A B could be added to its position embedding, P could not. P ~ N(0, 1), there mostly
    from words. Two rates: the pair's is the run's, P's `prompt_rate` times it (0.3 to 5e-3 … 5e-4 there), AdamW with decay
    1e-5. At 40 tokens and rank 45 of a length of 256 it is as large as 100 prompts of T5-base; here 10 and 8, as large as 20
    prompts on ViT-B/16: 15,400 parameters. Not identical at step 0: tokens take part in attention.

    Args:
        tokens: how many.
        rank: of the change.
        alpha: s = alpha/√rank.
        prompt_rate: P's learning rate, in rates of the run.
    """

    tokens: Count = 10
    rank: Count = 8
    alpha: Positive = 8.0
    prompt_rate: Positive = 60.0
    identity: ClassVar[bool] = False
    needs: ClassVar[tuple[str, ...]] = ("tokens", "grid")
    not_mergeable: ClassVar[str | None] = "prompt tokens are part of the sequence, not of a weight."
    vit_b16: ClassVar[tuple[tuple[dict[str, Any], int], ...]] = (({}, 15_400),)

    @classmethod
    def examples(cls) -> Iterable[Method]:
        return (cls(tokens=2, rank=3),)

    def install(self, plan: Plan) -> None:
        if self.blocks is not None:
            raise PeftError("dept works on what the first block receives: leave `blocks` out.")
        for tower, paths in plan.towers():
            stream, options = plan.token_stream(tower), plan.options_at(paths[0])
            if stream.grid is None:
                raise PeftError("dept has a row a position, and this model has no grid: build it for one picture size.")
            rows = stream.prefix + math.prod(stream.grid)
            change = ByPosition(rows, stream.width, self.rank, self.alpha / math.sqrt(self.rank), options)
            change.arg = 0 if stream.first_norm else stream.arg
            plan.join(stream.first_norm or paths[0], "positions", change)
            plan.add_tokens(paths, nn.Parameter(torch.randn(self.tokens, stream.width, **options)), stream)

    def parameter_groups(self, model: nn.Module, lr: float, weight_decay: float) -> Iterable[dict[str, Any]]:
        prompts = [graft.tokens for graft in lifecycle.own_grafts(model, self, Tokens) if graft.tokens is not None]
        return ({"params": prompts, "lr": lr * self.prompt_rate, "weight_decay": weight_decay},)


class ByPosition(Graft):
    """x + s·A B, x B N D."""

    order = -2  # before any tokens come in
    scalable = False

    def __init__(self, rows: int, dim: int, rank: int, scale: float, options: dict[str, Any]) -> None:
        super().__init__()
        self.A = nn.Parameter(torch.empty(rows, rank, **options))
        self.B = nn.Parameter(torch.zeros(rank, dim, **options))
        nn.init.kaiming_uniform_(self.A, a=math.sqrt(5))
        self.scale = scale

    def before(self, x: Tensor) -> Tensor:
        if x.shape[1] != len(self.A):
            raise PeftError(
                f"dept was made for {len(self.A)} tokens and {x.shape[1]} came: give pictures of the model's size."
            )
        return x + (self.A @ self.B * self.scale).to(x.dtype)
