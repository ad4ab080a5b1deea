"""Which task a method and a recipe make of a run."""

from __future__ import annotations

from typing import Any

from diffusion_peft.training.tasks import Task


def task_of(settings: dict[str, Any]) -> Task:
    from diffusion_peft.control.options import is_control

    if settings["slider"].options:
        from diffusion_peft.personalize.slider_task import SliderTask as kind
    elif is_control(settings):
        from diffusion_peft.control.task import ControlTask as kind
    else:
        kind = Task
    return kind(settings)
