"""What a model is trained for, a file a task: how wide its head is, its loss, its figures, and how a prediction is told."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

from peft_core.errors import PeftError

if TYPE_CHECKING:
    from vision_peft.tasks.base import Task

TaskName = Literal["classify", "multi_label", "regression", "segment", "depth", "detect"]
_FILES = {
    "classify": "vision_peft.tasks.classify",
    "multi_label": "vision_peft.tasks.multi_label",
    "regression": "vision_peft.tasks.regression",
    "segment": "vision_peft.dense.segment",
    "depth": "vision_peft.dense.depth",
    "detect": "vision_peft.dense.detect",
    "several": "vision_peft.tasks.several",  # what data of that kind say themselves
}


def kind_of(name: str) -> type[Task]:
    """The class of a task."""
    return importlib.import_module(_FILES[name]).TASK


def task_of_card(card: Mapping[str, Any]) -> Task:
    """The task of a finished run.

    Raises:
        PeftError: one that this version does not know.
    """
    if not isinstance(name := card.get("task", "classify"), str) or name not in _FILES:
        raise PeftError(
            f'this run is of the task "{name}", which this version does not know (it knows: {", ".join(_FILES)}): '
            "use the version that trained it."
        )
    return kind_of(name).of_card(card)
