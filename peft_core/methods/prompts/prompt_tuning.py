from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from peft_core import lifecycle
from peft_core.errors import PeftError
from peft_core.grafts.tokens import Tokens
from peft_core.method import Method, Plan
from peft_core.values import Count


@dataclass(frozen=True, kw_only=True)
class PromptTuning(Method):
    """Prompt tuning: learnt tokens P (tokens, D) among the first block's input, carried through all blocks.

    Lester, Al-Rfou, Constant, "The Power of Scale for Parameter-Efficient Prompt Tuning", EMNLP 2021. P ~ U(−0.5, 0.5)
    (`random`), or `sampled`: their start from the embeddings of frequent words, which for pictures is here taken as patch tokens
    that the first block receives, drawn from the first training batches by `lifecycle.prepare`. 100 tokens, a constant
    learning rate of 0.3 (Adafactor): google-research/prompt-tuning (72285ee). It is shallow VPT but for the start and the
    frozen dropout, which stays on. Not identical at step 0: tokens take part in attention. 76,800 parameters on ViT-B/16.

    Args:
        tokens: how many.
        init: where P starts.
    """

    tokens: Count = 100
    init: Literal["random", "sampled"] = "random"
    identity: ClassVar[bool] = False
    needs: ClassVar[tuple[str, ...]] = ("tokens",)
    not_mergeable: ClassVar[str | None] = "prompt tokens are part of the sequence, not of a weight."
    vit_b16: ClassVar[tuple[tuple[dict[str, Any], int], ...]] = (({}, 76_800),)

    @classmethod
    def examples(cls) -> Iterable[Method]:
        return (cls(tokens=2),)

    def install(self, plan: Plan) -> None:
        if self.blocks is not None:
            raise PeftError("prompt_tuning puts its tokens in at the first block: leave `blocks` out.")
        for tower, paths in plan.towers():
            stream = plan.token_stream(tower)
            made = Sampling(self.tokens, stream.width, stream.prefix, plan.options_at(paths[0]))
            plan.add_tokens(paths, made, stream, count=self.tokens)

    def wants(self, call: str) -> bool:
        return super().wants(call) and (call != "prepare" or self.init == "sampled")

    def prepare(self, model: nn.Module, losses: Iterable[Any]) -> None:
        made = [g.tokens for g in lifecycle.own_grafts(model, self, Tokens) if isinstance(g.tokens, Sampling)]
        for prompts in made:
            prompts.seen = []
        with torch.no_grad():
            for _ in losses:
                if all(sum(map(len, prompts.seen or ())) >= 8 * self.tokens for prompts in made):
                    break
            for prompts in made:
                prompts.take()


class Sampling(nn.Module):
    """P (tokens, D); while `seen` is a list it gathers what the block receives behind the prefix."""

    def __init__(self, tokens: int, dim: int, prefix: int, options: dict[str, Any]) -> None:
        super().__init__()
        self.values = nn.Parameter(torch.empty(tokens, dim, **options).uniform_(-0.5, 0.5))
        self.prefix = prefix
        self.seen: list[Tensor] | None = None

    def forward(self, x: Tensor) -> Tensor:
        if self.seen is not None:
            self.seen.append(x[:, self.prefix :].detach().flatten(0, 1))
        return self.values

    def take(self) -> None:
        """P ← tokens drawn from those seen, none twice where they suffice."""
        seen, self.seen = torch.cat(self.seen or [self.values]), None
        order = torch.randperm(len(seen), device=seen.device)
        picked = order.repeat(-(-len(self.values) // len(seen)))[: len(self.values)]
        self.values.copy_(seen[picked])
