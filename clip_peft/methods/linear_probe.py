from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from clip_peft.frozen import Clip
from clip_peft.learner import Learner, OpenVocabularyMethod
from clip_peft.parts.probe import ProbeLearner
from clip_peft.text.templates import DEFAULT


@dataclass(frozen=True, kw_only=True)
class LinearProbe(OpenVocabularyMethod):
    """Linear probe with a zero-shot start: logits = s · Ŵ f̂, rows and features of norm 1, W (C, E) from the class features.

    Silva-Rodríguez et al., "A Closer Look at the Few-Shot Adaptation of Large Vision-Language Models", CVPR 2024 (ZS-LP);
    jusiro/CLAP. W starts at the text features as the tower gives them (the mean over templates), whose norm of some 10 sets
    how far a step turns a row; each forward normalises the rows. C · E parameters.

    Args:
        template: of the class texts that W starts from (see zero_shot).
        normalise: False leaves the rows' norms free, W starting at norm 1: logits = s · W f̂, which a logit scale of 100 makes
            diverge at the published learning rate.
    """

    normalise: bool = True
    template: str | Sequence[str] = DEFAULT
    customary: ClassVar[Mapping[str, str]] = {"imagenet": "ensemble8"}
    of_classes: ClassVar[str | None] = "each class has learnt a weight vector of its own"
    vit_b16: ClassVar[tuple[tuple[dict[str, Any], int], ...]] = (({}, 512_000),)

    @classmethod
    def of_card(cls, settings: dict[str, Any], format: int) -> dict[str, Any]:
        return settings if format > 1 else {"normalise": False} | settings

    def learner(self, clip: Clip, names: Sequence[str]) -> Learner:
        return ProbeLearner(clip, self, names)
