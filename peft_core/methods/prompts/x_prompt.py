from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from peft_core.method import Method, Plan
from peft_core.parts.prompts import input_prompts
from peft_core.parts.tokens.pieces import Masked, Pieced
from peft_core.values import Count, Rate


@dataclass(frozen=True, kw_only=True)
class XPrompt(Pieced):
    """XPrompt: prompts at the input that lose their harmful tokens and pieces after a first training, and train on without them.

    Ma et al., "XPrompt: Exploring the Extreme of Prompt Tuning", EMNLP 2022. γ ζ ⊙ P with masks γ (tokens) and ζ (tokens, 16),
    each piece together; score E|∂L/∂γ|, E|∂L/∂ζ| over single training samples where the first training ended; the lowest are
    masked, the rest keep what that training made of them ("rewinding"), the head too. P ~ U(−0.5, 0.5), 20 tokens of 16 pieces;
    the paper tries shares from 0.1 to 0.9, of which 0.5 is the middle, with Adafactor at 0.3. There is no official code. What
    is masked stays in the sequence as zeros, as the product says. Not identical at step 0: tokens take part in attention.
    15,360 parameters on ViT-B/16.

    Args:
        tokens: how many.
    """

    tokens: Count = 20
    prune_tokens: Rate = 0.5
    prune_pieces: Rate = 0.5
    rewinds: ClassVar[bool] = False
    singly: ClassVar[bool] = True
    identity: ClassVar[bool] = False
    needs: ClassVar[tuple[str, ...]] = ("tokens",)
    not_mergeable: ClassVar[str | None] = "prompt tokens are part of the sequence, not of a weight."
    vit_b16: ClassVar[tuple[tuple[dict[str, Any], int], ...]] = (({}, 15_360),)

    @classmethod
    def examples(cls) -> Iterable[Method]:
        return (cls(tokens=3, pieces=8, passes=1),)

    def install(self, plan: Plan) -> None:
        for tower, paths, stream, values in input_prompts(plan, self.tokens):
            masks = self.masks(plan, tower, self.tokens, stream.width, values.device)
            plan.add_tokens(paths, Masked(values, masks), stream, count=self.tokens)

    def score(self, gradient: Tensor) -> Tensor:
        return gradient.abs()
