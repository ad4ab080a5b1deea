"""open_clip's image towers by themselves: features before the projection."""

from __future__ import annotations

from typing import Any

from torch import nn

from peft_core.errors import PeftError
from peft_core.jobs.hub.backbone import TOWER, Backbone
from peft_core.jobs.hub.open_clip_models import load_backbone


def load_tower(spec: str) -> tuple[nn.Module, int, Backbone]:
    """The image tower of a CLIP model, pictures `B 3 H W` to features `B D` of its last norm; D; and what it expects.

    Raises:
        PeftError: whatever is wrong with the name or the weights, or a tower that is no transformer of open_clip.
    """
    model, _, about = load_backbone(spec)
    visual: Any = model.visual
    if not hasattr(visual, "transformer") or getattr(visual, "attn_pool", None) is not None:
        raise PeftError(
            f"the image tower of {TOWER}{spec} is no plain vision transformer: choose another, such as ViT-B-16."
        )
    visual.proj = None  # then its output is what the last norm gives
    return visual, visual.ln_post.normalized_shape[-1], about
