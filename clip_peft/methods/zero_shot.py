from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from clip_peft.frozen import Clip
from clip_peft.learner import Learner, OpenVocabularyMethod, TemplateLearner
from clip_peft.text.templates import DEFAULT


@dataclass(frozen=True, kw_only=True)
class ZeroShot(OpenVocabularyMethod):
    """Zero-shot CLIP: logits = s · cos(f, t_c), t_c the feature of a text that names class c; nothing trains.

    Radford et al., "Learning Transferable Visual Models From Natural Language Supervision", ICML 2021. With several
    templates t_c is the normalised mean of their normalised features. Around a model adapted by grafts (lora, bitfit …) it
    is what trains them: text features are then made anew at each step.

    Args:
        template: a text with {} for the name, several, a data set's name (`oxford_pets` …), or `ensemble` (OpenAI's 80).
    """

    template: str | Sequence[str] = DEFAULT
    vit_b16: ClassVar[tuple[tuple[dict[str, Any], int], ...]] = (({}, 0),)

    def learner(self, clip: Clip, names: Sequence[str]) -> Learner:
        return TemplateLearner(clip, self, names)
