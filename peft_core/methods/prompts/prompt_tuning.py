from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from torch import nn

from peft_core.method import Method, Plan
from peft_core.parts.prompts import input_prompts
from peft_core.parts.tokens.drawn import Draw, Drawn, start_from_patches
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
        for _, paths, stream, values in input_prompts(plan, self.tokens):
            plan.add_tokens(paths, Drawn(values, stream.prefix), stream, count=self.tokens)

    def wants(self, call: str) -> bool:
        return super().wants(call) and (call != "prepare" or self.init == "sampled")

    def prepare(self, model: nn.Module, losses: Iterable[Any]) -> None:
        start_from_patches(model, self, losses, Draw, batches=8)
