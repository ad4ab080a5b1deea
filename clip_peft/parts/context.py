"""Learnt context vectors around class names: what the prompt methods share."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clip_peft.frozen import Clip, mean_features
from clip_peft.learner import Learner, OpenVocabularyMethod
from peft_core.errors import PeftError


class ContextMethod(OpenVocabularyMethod):
    """A method that learns a context, which starts from a text's words."""

    @classmethod
    def of_card(cls, settings: dict[str, Any], format: int) -> dict[str, Any]:
        """The first format took as many tokens of `init` as `context` says, and left the rest out of the text."""
        return settings if format > 1 or not settings.get("context") else settings | {"init": None}


class ContextLearner(Learner):
    """Learnt context vectors in front of (or around) the class name, and what follows them in `template`."""

    def __init__(self, clip: Clip, method: Any, names: Sequence[str], context: Tensor, template: str = "{}.",
                 position: str = "end", reference: str | Sequence[str] | None = None):  # fmt: skip
        super().__init__(clip, method, names)
        self.context = nn.Parameter(context)
        self.template, self.position, self.reference = template, position, reference
        self.for_names()

    def for_names(self) -> None:
        prompts = self.clip.prompts(self.names, self.template, self.context.shape[-2], self.position)
        self.text_pass = self.clip.text_pass(prompts)
        self.hand_passes = [] if self.reference is None else self.clip.text_passes(self.names, self.reference)

    @property
    def hand(self) -> Tensor:
        """C E, of norm 1: the features of the hand-written texts `reference`."""
        return self.remembered("hand", self.hand_features)

    @torch.no_grad()
    def hand_features(self) -> Tensor:
        return mean_features(self.hand_passes)

    def raw_texts(self) -> Tensor:
        """C E, as the text tower gives them."""
        return self.text_pass(self.context)

    def texts_for(self, features: Tensor) -> Tensor:
        """The same, or B C E where each of the pictures with features B E has texts of its own."""
        return self.raw_texts()

    def class_features(self) -> Tensor:
        return F.normalize(self.raw_texts(), dim=-1)


def start_context(
    clip: Clip, method: str, context: int | None, init: str | None, default: int = 4, rest: bool = False
) -> Tensor:
    """M D: the token embeddings of `init`, or N(0, 0.02²); M is `context`, else the number of tokens of `init`, else `default`.

    Args:
        rest: whether `init` may have more tokens than M, of which the first are taken (see rest_of).

    Raises:
        PeftError: fewer than one token, more than a text holds, or an `init` with another number of tokens.
    """
    words = None if init is None else clip.words(init)
    wanted = context if context is not None else default if words is None else len(words)
    checked_context(clip, method, wanted)
    if words is None:
        return clip.random(wanted)
    if len(words) < wanted or (len(words) > wanted and not rest):
        than = "fewer" if len(words) < wanted else "more"
        raise PeftError(
            f'{method}: init "{init}" has {len(words)} tokens, {than} than context {wanted}: leave context out, or set init to '
            "null for a random start."
        )
    return words[:wanted]


def checked_context(clip: Clip, method: str, context: int) -> None:
    """Raises PeftError unless a text has room for so many learnt tokens, before any are made."""
    if context < 1:
        raise PeftError(f"{method} got context {context}: it must be 1 or more.")
    if context >= clip.tower.context_length:
        raise PeftError(
            f"{method} got context {context:,}: a text of this model holds {clip.tower.context_length} tokens, those of the "
            "class name among them."
        )


def rest_of(init: str | None, clip: Clip, context: int) -> str:
    """The template with the words of `init` behind its first `context` tokens, which the context takes the place of.

    A word of which only some tokens are learnt stays out.
    """
    words = [] if init is None else init.split()
    taken = 0
    while words and taken < context:
        taken += len(clip.words(words.pop(0)))
    return " ".join([*words, "{}."])
