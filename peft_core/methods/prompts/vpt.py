import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from peft_core.errors import PeftError
from peft_core.method import Method, Plan
from peft_core.values import Rate, Widths


@dataclass(frozen=True, kw_only=True)
class VPT(Method):
    """Visual prompt tuning: learnt tokens P (tokens, D) stand behind the class token: x = [cls, P, patches].

    Jia et al., "Visual Prompt Tuning", ECCV 2022. Shallow: inserted before the first block and carried to the last.
    Deep: new ones before every block, what became of the last block's is dropped. P ~ U(−v, v), v = √(6/(3·p² + D)) for
    patches of p pixels; the frozen model's dropout and drop path are off: KMnP/vpt. Prompts take part in attention, so the
    model is not identical at step 0. 10 tokens: 7,680 parameters on ViT-B/16 shallow, 92,160 deep.

    Args:
        tokens: one number, or (deep) one a block where 0 means absent.
        deep: prompts at every block.
        dropout: on the prompts, a mask a sample.
        pool_prompts: where the model averages its tokens (MAE), average the last block's prompts too. KMnP/vpt does so for
            MAE ("original"); off is its `img_pool`, the mean of the patches.
    """

    tokens: Widths = 10
    deep: bool = False
    dropout: Rate = 0.0
    pool_prompts: bool = False
    identity: ClassVar[bool] = False
    needs: ClassVar[tuple[str, ...]] = ("tokens",)
    silences_dropout: ClassVar[bool] = True
    not_mergeable: ClassVar[str | None] = "prompt tokens are part of the sequence, not of a weight."

    @classmethod
    def examples(cls) -> Iterable[Method]:
        return cls(tokens=2), cls(tokens=2, deep=True), cls(tokens=2, tower="image")

    def install(self, plan: Plan) -> None:
        if not self.deep and not isinstance(self.tokens, int):
            raise PeftError("vpt: a list of token counts, one a block, needs deep=True.")
        # 1,000 is no limit of the method, but more prompts than that is a slip of the keyboard
        blocks = list(plan.chosen_blocks(self.tokens, 1000))
        for tower in dict.fromkeys(tower for tower, *_ in blocks):
            here = [(path, count) for place, _, path, count in blocks if place == tower]
            if self.pool_prompts and not plan.token_stream(tower).averaged:
                raise PeftError("vpt: pool_prompts is for models that average their tokens, and this one does not.")
            if self.deep:
                for path, count in here:
                    self._add(plan, tower, [path], count)
            else:
                paths = plan.anatomy.blocks[tower]
                first, last = paths.index(here[0][0]), paths.index(here[-1][0])
                self._add(plan, tower, paths[first : last + 1], here[0][1])

    def _add(self, plan: Plan, tower: str | None, blocks: Sequence[str], count: int) -> None:
        stream = plan.token_stream(tower)
        dim = stream.width
        bound = math.sqrt(6 / (3 * stream.patch**2 + dim))
        tokens = nn.Parameter(torch.empty(count, dim, **plan.options_at(blocks[0])).uniform_(-bound, bound))
        strip = not self.pool_prompts or blocks[-1] != plan.anatomy.blocks[tower][-1]
        plan.add_tokens(blocks, tokens, stream, self.dropout, strip)
