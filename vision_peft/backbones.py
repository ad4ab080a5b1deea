"""Classifiers' backbones by name: timm's models, transformers', and the image towers of open_clip's."""

from __future__ import annotations

import dataclasses

from torch import nn

from peft_core.errors import PeftError
from peft_core.jobs.hub.backbone import TOWER, Backbone, new_head
from peft_core.jobs.hub.timm_models import list_backbones
from peft_core.jobs.hub.timm_models import load_backbone as load_timm
from peft_core.jobs.hub.transformers_models import is_of_transformers
from peft_core.jobs.hub.transformers_models import load_backbone as load_hf
from vision_peft.video import joint  # noqa: F401  (registers VideoMAE's architectures with timm)
from vision_peft.video.classified import Classified

__all__ = ["list_backbones", "load_backbone"]


def load_backbone(spec: str, num_classes: int | None, drop_path: float = 0.0) -> tuple[nn.Module, Backbone]:
    """A pretrained model with a new head of `num_classes` classes, or with its own where None, and what it expects of its input.

    Args:
        spec: as for `peft_core.jobs.hub.timm_models.load_backbone`; or `open_clip:` and what clip_peft calls a backbone,
            for its image tower; or `hf:` and the name of a model of transformers; or a folder of either.
        drop_path: the rate of the last block's stochastic depth, rising linearly from 0 in the first.

    Raises:
        PeftError: an unknown name, weights that cannot be reached, a pickle, a file that does not fit the architecture.
    """
    if is_of_transformers(spec):
        return load_hf(spec, num_classes, drop_path)
    if not spec.startswith(TOWER):
        return load_timm(spec, num_classes, drop_path)
    if num_classes is None:
        raise PeftError(
            f"{spec} is a tower without a head of its own: choose a classifier, or a method that trains a head."
        )
    from peft_core.jobs.hub.towers import load_tower  # needs open_clip, which timm's models must not wait for

    visual, width, about = load_tower(spec.removeprefix(TOWER))
    return Classified(visual, new_head(width, num_classes)), dataclasses.replace(about, name=spec)
