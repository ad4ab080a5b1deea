from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from clip_peft.frozen import Clip
from clip_peft.learner import Learner, OpenVocabularyMethod
from clip_peft.parts.deep_prompts import CoupledPrompts
from peft_core.values import Count


@dataclass(frozen=True, kw_only=True)
class MaPLe(OpenVocabularyMethod):
    """MaPLe: text prompts P_0 … P_{J−1} (M, D) at the first J text blocks, and F_j(P_j) (M, V) at the image tower's.

    Khattak et al., "MaPLe: Multi-modal Prompt Learning", CVPR 2023; muzairkhattak/multimodal-prompt-learning. F_j is a
    linear D → V of its own. P_0 stands before the name (as in CoOp) and starts from the first M tokens of `init`, whose
    other words stay in the text; P_j replaces its states at block j and starts at N(0, 0.02²). Image prompts stand behind
    the patches, the first ones before the norm in front of the blocks (`ln_pre`). On ViT-B-16 depth 9 has 3,555,072
    parameters, depth 3 has 1,185,024.

    Args:
        depth: J.
        context: M.
        init: a text; None for a random start with nothing else before the name.
    """

    depth: Count = 9
    context: Count = 2
    init: str | None = "a photo of a"
    vit_b16: ClassVar[tuple[tuple[dict[str, Any], int], ...]] = (({}, 3_555_072), ({"depth": 3}, 1_185_024))

    @classmethod
    def examples(cls) -> Iterable["MaPLe"]:
        return (cls(depth=2),)

    def learner(self, clip: Clip, names: Sequence[str]) -> Learner:
        return CoupledPrompts(clip, self, names)
