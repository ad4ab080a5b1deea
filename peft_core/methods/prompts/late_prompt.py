from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Literal

import torch.nn.functional as F
from torch import Tensor, nn

from peft_core.errors import PeftError
from peft_core.grafts.graft import match
from peft_core.method import Method, Plan
from peft_core.values import Count, Rate, Whole


@dataclass(frozen=True, kw_only=True)
class LatePrompt(Method):
    """Late prompt tuning: the blocks from `start` on see tokens that a small network makes of the picture's own states there.

    Liu et al., "Late Prompt Tuning: A Late Prompt Could Be Better Than Many Prompts", Findings of EMNLP 2022. With x (N, D) what
    block `start` receives: `cls` (their NPG): P = W₂ relu(W₁ x_cls + b₁) + b₂, reshaped to (tokens, D); `mean`, `max` (APPG,
    MPPG): P = W₂ relu(pool(W₁ x + b₁)) + b₂, pooled adaptively to `tokens` rows. Nothing runs backward through the blocks
    before. They stand behind the class token (xyltt/LPT, 634c7b2: before it, the same to attention without positions there).
    5 tokens, width 128, the middle block, layers as torch makes them: as there; its dropout on P is the language model's own, 0
    on most ViTs. Not identical at step 0: tokens take part in attention. 593,792 parameters on ViT-B/16.

    Args:
        tokens: how many.
        hidden: the network's width.
        start: the block before which they come in; the middle one where None.
        pool: what they are made of.
        dropout: on them.
    """

    tokens: Count = 5
    hidden: Count = 128
    start: Whole | None = None
    pool: Literal["cls", "mean", "max"] = "cls"
    dropout: Rate = 0.0
    identity: ClassVar[bool] = False
    needs: ClassVar[tuple[str, ...]] = ("tokens",)
    not_mergeable: ClassVar[str | None] = "prompt tokens are part of the sequence, not of a weight."
    vit_b16: ClassVar[tuple[tuple[dict[str, Any], int], ...]] = (({}, 593_792), ({"pool": "mean"}, 197_504))

    @classmethod
    def examples(cls) -> Iterable[Method]:
        return cls(tokens=2, hidden=3, pool="mean"), cls(tokens=2, hidden=3, pool="max", start=0)

    def install(self, plan: Plan) -> None:
        if self.blocks is not None:
            raise PeftError("late_prompt works from one block to the last: say `start` in place of `blocks`.")
        for tower, paths in plan.towers():
            stream, start = plan.token_stream(tower), len(paths) // 2 if self.start is None else self.start
            if start >= len(paths):
                raise PeftError(f"late_prompt: start {start} lies above the model's last block, {len(paths) - 1}.")
            if self.pool == "cls" and not stream.prefix:
                raise PeftError("late_prompt: this model has no class token to make prompts of: take pool mean or max.")
            made = Generator(stream.width, self.hidden, self.tokens, self.pool, plan.options_at(paths[start]))
            plan.add_tokens(paths[start:], made, stream, self.dropout, count=self.tokens)


class Generator(nn.Module):
    """x B N D -> prompts B P D."""

    def __init__(self, dim: int, hidden: int, tokens: int, pool: str, options: dict[str, Any]) -> None:
        super().__init__()
        self.tokens, self.pool = tokens, pool
        self.down = nn.Linear(dim, hidden, **options)
        self.up = nn.Linear(hidden, dim * tokens if pool == "cls" else dim, **options)

    def forward(self, x: Tensor) -> Tensor:
        inner = self.down(match(x[:, 0] if self.pool == "cls" else x, self.down.weight))
        if self.pool == "cls":
            return self.up(F.relu(inner)).unflatten(-1, (self.tokens, -1))
        pool = partial(F.adaptive_avg_pool1d if self.pool == "mean" else F.adaptive_max_pool1d, output_size=self.tokens)
        return self.up(F.relu(pool(inner.transpose(1, 2)).transpose(1, 2)))
