"""Adapter folders of CLIP methods: those that graft as peft_core writes them, the others' own tensors in the same form."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from clip_peft.learner import OpenVocabularyMethod
from clip_peft.open_vocabulary import NamesReadAlike, OpenVocabulary
from clip_peft.text.templates import DEFAULT
from peft_core import remove, save_adapter
from peft_core.adapter_file import load_adapter, write_adapter
from peft_core.errors import PeftError
from peft_core.jobs.hub.backbone import Tokenizer
from peft_core.method import Method
from peft_core.registry import find_method, make_method
from peft_core.saved.card import check_tensors, read_card, read_weights
from peft_core.saved.fingerprint import check_backbone

NAMELESS = ("picture",)
"""What a model whose card names no classes compares with until it is given some."""


INNER = "inner"
"""The folder, in an adapter's, of what a method that learns beside the model grafted into it."""


def save(whole: OpenVocabulary, folder: str | os.PathLike, **card: Any) -> Path:
    """Write what was learnt, with the class names and, beside a method that grafts, the texts' template."""
    card = {
        "class_names": list(whole.learner.kept_names),
        "template": getattr(whole.learner.method, "template", None),
    } | card
    if not isinstance(whole.method, OpenVocabularyMethod):
        return save_adapter(whole.model, folder, **card)
    methods: dict[str, Method] = {whole.method.name: whole.method}
    if whole.method.inner():
        save_adapter(whole.model, Path(folder) / INNER, **card)
    return write_adapter(folder, methods, whole.learner.state_dict(), whole.model, **card)


def load(model: nn.Module, folder: str | os.PathLike, tokenizer: Tokenizer | None = None,
         class_names: Sequence[str] | None = None, *, force: bool = False, **options: Any) -> OpenVocabulary:  # fmt: skip
    """The stock `model` with what a folder holds, in eval mode; other class names where some are given.

    Args:
        force: load onto another backbone too, where the shapes fit.
        options: as for OpenVocabulary.

    Raises:
        PeftError: the folder holds no adapter, or one of another backbone; or new names for a method that has learnt its
            classes.
    """
    card, weights = read_card(folder), read_weights(folder)
    if "class_names" not in card:
        raise PeftError(f"{folder} names no classes: it is no adapter of clip_peft.")
    (entry, *others), format = card["adaptations"], card.get("format", 1)
    method = make_method(entry["method"], **find_method(entry["method"]).of_card(entry["settings"], format))
    kept = {p: p.requires_grad for p in model.parameters()}

    def opened(method: str | Method, **settings: Any) -> OpenVocabulary:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", NamesReadAlike)  # told when it was trained
            return OpenVocabulary(model, method, card["class_names"] or NAMELESS, tokenizer, **settings, **options)

    try:
        if others or not isinstance(method, OpenVocabularyMethod):
            whole = opened("zero_shot", template=card.get("template") or DEFAULT)
            load_adapter(model, folder, force)
            whole.method = method
        else:
            inside = opened(method) if method.inner() else None  # the backbone is told by what does not train
            if not force:
                check_backbone(model, card["backbone"], Path(folder))
            whole = inside or opened(method)
            check_tensors(_expected(whole.learner, weights), weights, Path(folder))
            whole.learner.load_state_dict(whole.learner.from_format(weights, format))
            if method.inner():
                remove(model)  # what was made anew, to be read in place of
                load_adapter(model, Path(folder) / INNER, force)
        whole if class_names is None else whole.set_classes(class_names)
    except BaseException:
        if "_peft_record" in model.__dict__ and isinstance(method, OpenVocabularyMethod):
            remove(model)
        for parameter, required in kept.items():
            parameter.requires_grad_(required)
        raise
    return whole.requires_grad_(False).eval()


def _expected(learner: nn.Module, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The learner's tensors; a cache that is still empty takes any number of rows."""
    return {
        key: value.new_empty(weights[key].shape[:1] + value.shape[1:], device="meta")
        if not value.numel() and key in weights and weights[key].dim()
        else value
        for key, value in learner.state_dict().items()
    }
