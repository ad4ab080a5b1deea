"""open_clip's image towers as classifiers."""

from __future__ import annotations

import dataclasses
from typing import Any

from torch import nn

from peft_core.errors import PeftError
from peft_core.jobs.hub.backbone import Backbone

TOWER = "open_clip:"


def load_tower(spec: str, num_classes: int) -> tuple[nn.Module, Backbone]:
    """The image tower of a CLIP model with a new head on the features before its projection, and what it expects.

    Args:
        spec: `open_clip:` and a backbone as `clip_peft` takes it: `open_clip:ViT-B-16/openai`, `open_clip:reference`.

    Raises:
        PeftError: whatever is wrong with the name or the weights, or a tower that is no transformer of open_clip.
    """
    from peft_core.jobs.hub.open_clip_models import load_backbone
    from vision_peft.video.classified import Classified

    model, _, about = load_backbone(spec.removeprefix(TOWER))
    visual: Any = model.visual
    if not hasattr(visual, "transformer") or getattr(visual, "attn_pool", None) is not None:
        raise PeftError(f"the image tower of {spec} is no plain vision transformer: choose another, such as ViT-B-16.")
    visual.proj = None  # then its output is what the last norm gives
    head = nn.Linear(visual.ln_post.normalized_shape[-1], num_classes)
    nn.init.trunc_normal_(head.weight, std=0.02)
    nn.init.zeros_(head.bias)
    return Classified(visual, head), dataclasses.replace(about, name=spec)
