"""A finished run in use: the model with its adapter, and its classes."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import torch

from peft_core import load_adapter
from peft_core.errors import PeftError
from peft_core.jobs.hub.precision import in_few_bits, methods_of
from peft_core.jobs.runs.load import load_run
from peft_core.jobs.runs.use import Run, TaskRun, read_trained
from vision_peft.tasks import task_of_card


def classifier(path: str, command: str) -> Run:
    """A run of classes alone.

    Raises:
        PeftError: it is one of another task, which this command has no use for.
    """
    run = load_run(path, ("vision_peft",))
    if isinstance(run, TaskRun):
        raise PeftError(
            f"{path} is a run of the task {run.task.name}, and {command} takes runs of classes: give another."
        )
    return run


def open_run(path: Path) -> Run:
    """Loads a classifier's run folder, or the chosen subnet of a folder of `noah`; on a GPU where there is one.

    Raises:
        PeftError: no run folder, no adapter in it yet, or weights that cannot be reached.
    """
    if (path / "retrain" / "adapter").is_dir():
        path = path / "retrain"
    config, card, common = read_trained(path, "vision_peft")
    from vision_peft.backbones import load_backbone

    methods = methods_of(card)
    own_head = any(method.keeps_head for method in methods)
    task = task_of_card(card)
    if own_head:
        model, about = load_backbone(config["backbone"], None, config["drop_path"])
    else:
        model, about = task.model(load_backbone, config)
    kind: Any = Run if task.classes else partial(TaskRun, task=task)
    if "clips" in card:
        from vision_peft.video.run import VideoRun, on_clips

        model, kind = on_clips(model, about, card), VideoRun
    load_adapter(in_few_bits(model, config, *methods), path / "adapter")
    model.requires_grad_(False).eval().to("cuda" if torch.cuda.is_available() else "cpu")
    return kind(model, card=card, config=config, **common)
