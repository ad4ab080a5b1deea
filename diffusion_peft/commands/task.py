"""Which task a method and a recipe make of a run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from diffusion_peft.control.options import is_control
from diffusion_peft.data.concepts import Concept
from diffusion_peft.editing.options import is_edit

if TYPE_CHECKING:
    from diffusion_peft.training.tasks import Task


def task_of(settings: dict[str, Any], concepts: list[Concept]) -> Task:
    """The task of `fit`'s settings; what trains is imported here."""
    if settings["slider"].options:
        from diffusion_peft.personalize.slider_task import SliderTask as kind
    elif is_edit(settings):
        from diffusion_peft.editing.task import EditTask as kind  # type: ignore[assignment]
    elif is_control(settings):
        from diffusion_peft.control.task import ControlTask as kind  # type: ignore[assignment]
    else:
        from diffusion_peft.training.tasks import Task as kind  # type: ignore[assignment]
    return kind(settings, concepts)
