"""A finished run in use: the model with its adapter, and its classes."""

from __future__ import annotations

from pathlib import Path

import torch

from peft_core import load_adapter
from peft_core.jobs.hub.precision import in_few_bits, methods_of
from peft_core.jobs.runs.use import Run, read_trained


def open_run(path: Path) -> Run:
    """Loads a classifier's run folder, or the chosen subnet of a folder of `noah`; on a GPU where there is one.

    Raises:
        PeftError: no run folder, no adapter in it yet, or weights that cannot be reached.
    """
    if (path / "retrain" / "adapter").is_dir():
        path = path / "retrain"
    config, card, common = read_trained(path, "vision_peft")
    names = common["class_names"]
    from vision_peft.backbones import load_backbone

    methods = methods_of(card)
    own_head = any(method.keeps_head for method in methods)
    model, about = load_backbone(config["backbone"], None if own_head else len(names), config["drop_path"])
    kind = Run
    if "clips" in card:
        from vision_peft.video.run import VideoRun, on_clips

        model, kind = on_clips(model, about, card), VideoRun
    load_adapter(in_few_bits(model, config, *methods), path / "adapter")
    model.requires_grad_(False).eval().to("cuda" if torch.cuda.is_available() else "cpu")
    return kind(model, card=card, config=config, **common)
