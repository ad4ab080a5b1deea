from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from clip_peft.frozen import Clip
from clip_peft.learner import Learner
from clip_peft.parts.context import ContextLearner, ContextMethod, start_context
from clip_peft.text.prompts import checked_names
from peft_core.errors import PeftError
from peft_core.values import Count


@dataclass(frozen=True, kw_only=True)
class CoOp(ContextMethod):
    """CoOp: t_c = text([start] v_1 … v_M name . [end]) with learnt v (M, D); cross entropy on s · cos(f, t_c).

    Zhou et al., "Learning to Prompt for Vision-Language Models", IJCV 2022; KaiyangZhou/CoOp. v ~ N(0, 0.02²), or the
    token embeddings of `init` ("a photo of a": 4). 16 tokens: 8,192 parameters on ViT-B-16, 4 tokens: 2,048.

    Args:
        context: M; where None, the number of tokens of `init`, or 16.
        init: a text whose token embeddings v starts from.
        position: of the name: behind the context, in its middle, or in front of it.
        class_specific: v (C, M, D), one context a class (random start).
    """

    context: Count | None = None
    init: str | None = None
    position: Literal["end", "middle", "front"] = "end"
    class_specific: bool = False

    @property
    def of_classes(self) -> str | None:  # type: ignore[override]
        return "each class has learnt a context of its own" if self.class_specific else None

    vit_b16: ClassVar[tuple[tuple[dict[str, Any], int], ...]] = (
        ({}, 8_192), ({"context": 4}, 2_048), ({"init": "a photo of a"}, 2_048), ({"class_specific": True}, 8_192_000),
    )  # fmt: skip

    @classmethod
    def examples(cls) -> Iterable["CoOp"]:
        return (cls(context=4),)

    def learner(self, clip: Clip, names: Sequence[str]) -> Learner:
        if self.class_specific and self.init is not None:
            raise PeftError("coop: a class-specific context starts at random, so leave init out.")
        start = start_context(clip, self.name, self.context, self.init, default=16)
        if self.class_specific:
            start = clip.random(len(checked_names(names)), len(start))
        return ContextLearner(clip, self, names, start, position=self.position)
