"""What a run's pictures are labelled with: one class each, or any number of labels."""

from __future__ import annotations

import importlib
from typing import Any

_KINDS = {"classify": ("clip_peft.tasks.classes", "Classes"), "multi_label": ("clip_peft.tasks.labels", "Labels")}


def kind_of(name: str) -> Any:
    """The class of a task, by its name."""
    module, kind = _KINDS[name]
    return getattr(importlib.import_module(module), kind)


def task_of(method: Any) -> Any:
    """The class of what a method's data are labelled with."""
    return kind_of(getattr(method, "task", "classify"))
