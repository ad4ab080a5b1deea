"""A CLIP model that names pictures with the classes it is given: a plain module, images → logits."""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from clip_peft.frozen import Clip
from clip_peft.learner import Learner, OpenVocabularyMethod, grafted
from clip_peft.text.prompts import alike
from clip_peft.text.tower import TextTower
from peft_core.adaptation import adapt
from peft_core.errors import PeftError
from peft_core.jobs.hub.backbone import Tokenizer
from peft_core.method import Method
from peft_core.registry import make_method

STANDARD_VOCABULARY = 49408


class NamesReadAlike(UserWarning):
    """Class names that a tokenizer makes the same tokens of."""


class OpenVocabulary(nn.Module):
    """`OpenVocabulary(model, "coop", ["cat", "dog"])(images)` → logits B C.

    The model is frozen, logit scale included, and stays in eval mode; what trains are `learner`'s parameters (float32), or,
    for a method that grafts (`lora`, `clip_lora`, `bitfit` …), the adapter in the model, named by zero-shot texts.

        clip = OpenVocabulary(model, "coop", names, context=16)
        optimizer = torch.optim.SGD(clip.trainable(), lr=2e-3)
        for images, labels in loader:
            clip.loss(images, labels).backward(); optimizer.step(); optimizer.zero_grad()
        clip.set_classes(["zebra", "okapi"])                  # the learnt prompt before other names

    Args:
        model: an open_clip model (`open_clip.create_model`); it is changed in place.
        method: a method's name, a preset's name or path, or a method's dataclass.
        class_names: what the logits' columns stand for, by place: a name may stand there twice (as in ImageNet's list).
        tokenizer: `tokenizer(texts, context_length=…)` → ids; open_clip's standard one where the vocabulary fits.
        memory: bytes that the text tower's activations may take (see TextPass).
        **hyper: the method's settings; beside a method that grafts, `template` is that of the class texts.

    Raises:
        PeftError: unknown names, class names that are empty or too long, a tokenizer that is missing.
    """

    def __init__(self, model: nn.Module, method: str | Path | Method = "zero_shot", class_names: Sequence[str] = (),
                 tokenizer: Tokenizer | None = None, *, memory: float | None = None, **hyper: Any):  # fmt: skip
        super().__init__()
        template = {}
        settings = make_method(method) if isinstance(method, Method) else None
        if settings is None:
            if "template" in hyper and make_method(method).grafts:
                template = {"template": hyper.pop("template")}
            settings = make_method(method, **hyper)
        clip = Clip(model, tokenizer or standard_tokenizer(TextTower(model)), memory)
        self.model = model
        self.method = settings
        if isinstance(settings, OpenVocabularyMethod):
            kept = {p: p.requires_grad for p in model.parameters()}
            model.requires_grad_(False)
            try:
                learner = settings.learner(clip, class_names)
                for inner in settings.inner():
                    adapt(model, inner)
            except BaseException:
                for parameter, required in kept.items():
                    parameter.requires_grad_(required)
                raise
        else:
            texts = make_method("zero_shot", **template)
            assert isinstance(texts, OpenVocabularyMethod)
            learner = texts.learner(clip, class_names)  # first: it checks the names
            adapt(model, settings)
        self.learner: Learner = learner
        self._warn_of_names()
        self.train(self.training)

    @property
    def class_names(self) -> tuple[str, ...]:
        return self.learner.names

    def forward(self, images: Tensor) -> Tensor:
        """Logits B C of images B 3 H W."""
        if self.__dict__.get("_is_replica"):  # its towers lie on another device than those the learner looks at
            raise PeftError(
                "nn.DataParallel takes what learns apart from its model: use DistributedDataParallel, or one device."
            )
        return self.learner(images)

    def loss(self, images: Tensor, labels: Tensor) -> Tensor:
        """The method's loss on images B 3 H W and labels B."""
        return self.learner.loss(self.learner.encode(images), labels, images)

    def encode(self, images: Tensor) -> Tensor:
        """Image features B E, not normalised, as `logits` takes them: cache them where the image tower is frozen."""
        return self.learner.encode(images)

    def logits(self, features: Tensor, weights: Tensor | None = None) -> Tensor:
        """B C of image features as `encode` gives them; `weights` are `class_weights()`, where they are at hand."""
        return self.learner.logits(features, weights)

    @torch.no_grad()
    def class_weights(self) -> Tensor:
        """C E for `image_features @ weights.T` with normalised image features."""
        return self.learner.weights()

    def set_classes(self, class_names: Sequence[str]) -> "OpenVocabulary":
        """Other classes from here on.

        Raises:
            PeftError: what was learnt belongs to the classes it was learnt on.
        """
        self.learner.set_names(class_names)
        self._warn_of_names()
        return self

    def _warn_of_names(self) -> None:
        """Tells of different names that are the same tokens; names that are spelled alike are the caller's will."""
        for group in alike(self.learner.clip.tokenizer, self.class_names):
            if len(set(group)) > 1:
                message = f"these class names are the same tokens, so no model can tell them apart: {', '.join(group)}"
                warnings.warn(message, NamesReadAlike, stacklevel=3)

    def trainable(self) -> list[nn.Parameter]:
        return [p for p in self.parameters() if p.requires_grad]

    def end_epoch(self, epoch: int, epochs: int) -> None:
        """Tell the method that epoch `epoch` (from 1 on) of `epochs` is over; promptsrc averages then."""
        self.learner.end_epoch(epoch, epochs)

    def train(self, mode: bool = True) -> "OpenVocabulary":
        super().train(mode)
        if not grafted(self.method):
            self.model.eval()  # frozen: no dropout, no batch statistics
        return self


def standard_tokenizer(tower: TextTower) -> Tokenizer:
    """open_clip's own BPE tokenizer.

    Raises:
        PeftError: the text tower has another vocabulary.
    """
    if tower.is_hf or tower.vocabulary != STANDARD_VOCABULARY:
        raise PeftError(
            f"the text tower knows {tower.vocabulary} tokens, not the {STANDARD_VOCABULARY} of open_clip's standard tokenizer: "
            "pass tokenizer=open_clip.get_tokenizer(name)."
        )
    import open_clip

    return open_clip.SimpleTokenizer(context_length=tower.context_length)
