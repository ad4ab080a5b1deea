"""What a run's pictures are labelled with: one class each, or any number of labels."""

from __future__ import annotations

import importlib
from collections.abc import Iterable
from typing import Any

from peft_core.errors import PeftError
from peft_core.registry import make_method

_KINDS = {"classify": ("clip_peft.tasks.classes", "Classes"), "multi_label": ("clip_peft.tasks.labels", "Labels")}


def kind_of(name: str) -> Any:
    """The class of a task, by its name."""
    module, kind = _KINDS[name]
    return getattr(importlib.import_module(module), kind)


def task_of(method: Any) -> Any:
    """The class of what a method's data are labelled with."""
    return kind_of(getattr(method, "task", "classify"))


def check_classes(methods: Iterable[str], command: str) -> None:
    """Raises PeftError for a method of other labels than classes, where a command scores classes alone."""
    for name in methods:
        if getattr(make_method(name), "task", "classify") != "classify":
            raise PeftError(
                f"{name} learns any number of labels a picture, which {command} does not score: give it to fit."
            )
