from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from clip_peft.frozen import Clip
from clip_peft.learner import HeldNear, Learner
from clip_peft.parts.context import ContextLearner, ContextMethod, start_context
from clip_peft.text.templates import DEFAULT
from peft_core.values import Count, NotNegative


@dataclass(frozen=True, kw_only=True)
class KgCoOp(ContextMethod):
    """KgCoOp: CoOp with loss CE + w · mean_c(1 − cos(t_c, h_c)), h_c the features of hand-written prompts.

    Yao et al., "Visual-Language Prompt Tuning with Knowledge-guided Context Optimization", CVPR 2023; htyao89/KgCoOp.
    2,048 parameters on ViT-B-16.

    Args:
        context: M; where None, the number of tokens of `init`, or 4.
        init: a text whose token embeddings the context starts from; None for N(0, 0.02²).
        weight: w.
        template: of the hand-written prompts (see zero_shot).
    """

    context: Count | None = None
    init: str | None = "a photo of a"
    weight: NotNegative = 8.0
    template: str | Sequence[str] = DEFAULT
    customary: ClassVar[Mapping[str, str]] = {"dtd": "a photo of a {}, a type of texture."}
    vit_b16: ClassVar[tuple[tuple[dict[str, Any], int], ...]] = (({}, 2_048),)

    @classmethod
    def examples(cls) -> Iterable["KgCoOp"]:
        return (cls(context=3, init=None),)

    def learner(self, clip: Clip, names: Sequence[str]) -> Learner:
        start = start_context(clip, self.name, self.context, self.init)
        return _KgCoOp(clip, self, names, start, reference=self.template)


class _KgCoOp(HeldNear, ContextLearner):
    """CoOp's context, held near."""
